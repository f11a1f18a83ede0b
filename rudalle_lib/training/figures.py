"""The figures of a training: a line of JSON per step, which programs can follow."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rudalle_lib.storage.local_files import whole_file

Figures = dict[str, float]
"""Figures of a step by name, such as loss, held_out_loss, gradient_norm and seconds."""

FILE = "figures.jsonl"
"""Name of the file in the work folder."""


class FiguresLog:
    """The file `figures.jsonl` of a work folder.

    Args:
        folder: the work folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def write(self, step: int, figures: Figures) -> None:
        """Append the figures of a step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")

    def cut(self, step: int) -> None:
        """Drop the figures of this step and later ones, which are about to be made again."""
        kept = [line for line in read_figures(self.path.parent) if line["step"] < step]
        with whole_file(self.path) as fresh:
            fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")


def read_figures(folder: Path) -> list[dict[str, float]]:
    """Return the figures of all steps of a work folder, each with its `step`, in order."""
    try:
        text = (folder / FILE).read_text("utf-8")
    except FileNotFoundError:
        return []
    return list(_parsed(text))


def _parsed(text: str) -> Iterator[dict[str, float]]:
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):  # else it is still being written
            yield json.loads(line)


def printer(every: int = 50) -> Callable[[int, Figures], None]:
    """Return a function that prints the figures of some steps to stderr, for command lines.

    Args:
        every: steps between two lines; steps with a measurement are always printed.
    """

    def show(step: int, figures: Figures) -> None:
        measured = any(name.startswith("held_out") for name in figures)
        if step % every == 0 or measured:
            values = "  ".join(f"{name} {value:.5g}" for name, value in figures.items())
            print(f"{time.strftime('%H:%M:%S')}  step {step}  {values}", file=sys.stderr)

    return show


class Follower:
    """Reads the figures of a training that another process writes.

    Args:
        folder: the work folder; its file need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._offset, self._inode, self._step = 0, 0, -1

    def new(self) -> list[tuple[int, Figures]]:
        """Return the steps that were written since the last call, each with its figures."""
        try:
            with self._path.open("rb") as file:
                if (inode := os.fstat(file.fileno()).st_ino) != self._inode:  # cut by a resume
                    self._offset, self._inode = 0, inode
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = [(int(line.pop("step")), line) for line in _parsed(whole.decode())]
        fresh = [(step, figures) for step, figures in lines if step > self._step]
        self._step = max([self._step, *(step for step, _ in fresh)])
        return fresh
