"""Every command with every kind of wrong path: one sentence and a documented exit code, in time."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import cast

import click
import pytest
import typer
import yaml
from _pytest.mark.structures import ParameterSet
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.cli.options import PACKAGED
from rudalle_lib.config.run import RunConfig
from rudalle_lib.storage.storage import Storage
from tests.support.hand_made import plan_by_hand, publish_by_hand

SECONDS = 60
"""Within this time every command has noticed that a path is wrong."""

PATHS = ("CONFIG", "OUTPUT", "FILE", "PATH")
"""Placeholders of parameters that are paths."""


def commands(group: click.Command, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of all commands."""
    for name, command in getattr(group, "commands", {}).items():
        yield (*prefix, name)
        yield from commands(command, (*prefix, name))


def command_of(words: tuple[str, ...]) -> click.Command:
    command: click.Command = typer.main.get_command(app)  # type: ignore[assignment]
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    return command


def is_path(parameter: click.Parameter) -> bool:
    return (parameter.metavar or "").rstrip(".") in PATHS


PARAMETERS = [
    pytest.param(words, str(parameter.name), id="-".join((*words, str(parameter.name))))
    for words in commands(typer.main.get_command(app))  # type: ignore[arg-type]
    for parameter in command_of(words).params
    if is_path(parameter) and words != ("models", "pull")  # `models verify` does the same first
]
"""Every parameter that is a path, of every command."""


# --- wrong paths -------------------------------------------------------------------------------


def file(path: Path) -> None:
    path.write_text("a file")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def below_a_file(path: Path) -> None:
    path.parent.mkdir()
    path.parent.rmdir()
    path.parent.write_text("in the way")


def foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "README.md").write_text("of a stranger")
    (path / "data").write_text("a file where a folder is expected")


def plan_only(path: Path) -> None:
    plan_by_hand(RunConfig.model_validate({"output": str(path)}), path.parent)


def stage_is_a_file(path: Path) -> None:
    finished(path)
    for name in ("stages", "shards", "plan"):
        (path / name).rename(path / f"{name}.old")
        (path / name).write_text("a file")


def empty_run(path: Path) -> None:
    path.mkdir()
    (path / "run.json").write_bytes(b"")


def wrong_run(path: Path) -> None:
    finished(path)
    (path / "run.json").write_text('{"name": ["x"], "totals": NaN}')


def folders_for_files(path: Path) -> None:
    """Every file that a command reads is a folder."""
    finished(path)
    for found in [p for p in path.rglob("*") if p.is_file()]:
        found.unlink()
        found.mkdir()


def links_for_files(path: Path) -> None:
    """Every file that a command reads is a link to nothing."""
    finished(path)
    for found in [p for p in path.rglob("*") if p.is_file()]:
        found.unlink()
        found.symlink_to("nowhere")


def finished(path: Path) -> None:
    config = RunConfig.model_validate({"output": str(path)})
    publish_by_hand(Storage(config.output), config, plan_by_hand(config, path.parent))


def link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere/at/all")


def missing(path: Path) -> None:
    """Nothing is there."""


KINDS: dict[str, Callable[[Path], object]] = {
    "missing": missing,
    "file": file,
    "binary": binary,
    "below_a_file": below_a_file,
    "empty_folder": Path.mkdir,
    "foreign_folder": foreign_folder,
    "plan_only": plan_only,
    "stage_is_a_file": stage_is_a_file,
    "empty_run": empty_run,
    "wrong_run": wrong_run,
    "folders_for_files": folders_for_files,
    "links_for_files": links_for_files,
    "link_loop": link_loop,
    "broken_link": broken_link,
    "fifo": os.mkfifo,
}
"""What is at a wrong path."""

NAMES = {
    "empty": "",
    "blank": " ",
    "long": "x" * 5000,
    "control": "a\x1b[31m\nb",
    "zero": "a\0b",
    "surrogate": "a\udcffb",
    "home": "~nobody-of-this-name/x",
    "scheme": "nonsense://x",
    "chain": "file://a::http://b",
    "device": "/dev/null",
    "endless": "/dev/zero",
    "root": "/",
}
"""Paths that are wrong by their names, or on any machine."""

CREATES = {"output": ("missing", "empty_folder", "plan_only", "links_for_files")}
"""Options for which these are right."""


Words = tuple[tuple[str, ...], str]
"""The words of a command and one of its parameters."""


def is_right_kind(words: tuple[str, ...], parameter: str, kind: str) -> bool:
    """Whether a command accepts such a file; where it writes to, only the folder can be wrong."""
    return kind in CREATES.get(parameter, ()) or (parameter == "to" and kind != "below_a_file")


def is_right_name(words: tuple[str, ...], parameter: str, kind: str) -> bool:
    """Whether a command accepts such a name; where it writes to is tested with the command."""
    a_table = (*words, parameter, kind) == ("run", "prompts", "root")  # read when the run plans
    return parameter == "to" or a_table or (parameter == "output" and kind == "home")


AT_LENGTH = (pytest.mark.chaos, pytest.mark.slow)
"""Marks of what only `make chaos` tries."""

LEAST = {"folder": 4}
"""Parameters with which only every fourth kind is tried: each run computes with a network."""


def wrong(
    kinds: Iterable[str], is_right: Callable[[tuple[str, ...], str, str], bool]
) -> list[ParameterSet]:
    """Every parameter with every kind that is wrong for it.

    Commands that have a parameter in common read it by the same functions. So one of them is
    tried with each kind, in turn; all others are tried at length.
    """
    found, turns = [], Counter[tuple[str, str]]()
    for number, kind in enumerate(kinds):
        commands = [one for one in PARAMETERS if not is_right(*cast(Words, one.values), kind)]
        sizes = Counter(str(one.values[1]) for one in commands)
        for one in commands:
            parameter = str(one.values[1])
            turn = (turns[parameter, kind] - number) % max(
                sizes[parameter], LEAST.get(parameter, 1)
            )
            turns[parameter, kind] += 1
            marks = () if turn == 0 else AT_LENGTH
            found.append(pytest.param(*one.values, kind, id=f"{one.id}-{kind}", marks=marks))
    return found


@pytest.fixture(autouse=True)
def no_server() -> Iterator[None]:
    """Commands find no server of other tests: `serve` would serve."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Fail if the block takes longer."""

    def stop(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"not finished within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def call(words: tuple[str, ...], parameter: str, path: str, config: Path) -> Result:
    """Call a command with one path, and what else it requires."""
    options, arguments = [], []
    required = {"image_id": "x-000", "reason": "too_long", "name": "demo-vqgan"}
    for known in command_of(words).params:
        if known.name == parameter:
            value = path
        elif known.name == "config" or (known.name == "folder" and parameter != "folder"):
            value = str(config) if known.name == "config" else ""
        elif known.required:
            value = required.get(str(known.name), str(config.parent / "out"))
        else:
            continue
        if isinstance(known, click.Argument) or known.param_type_name == "argument":
            arguments.append(value)
        elif value or known.name == parameter:
            options += [known.opts[0], value]
    with limited(SECONDS):
        return CliRunner().invoke(app, [*words, *options, "--", *arguments])


PROGRESS = ": checking models, prompts and output"
"""What a run prints first."""


def check(done: Result, path: str) -> None:
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown and "\x1b" not in shown
    assert done.exit_code in (0, 1, 2), shown
    if done.exit_code == 2 and not done.stderr.startswith("Usage: "):
        lines = done.stderr.splitlines()
        (line, *more) = lines[1:] if lines[0].endswith(PROGRESS) else lines
        assert line.startswith("rudalle-flows: ") and line.endswith(".") or more
        assert len(more) <= path.count("\n")
        assert "[Errno" not in line and "Error(" not in line


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that is right; its table has one prompt."""
    (tmp_path / "right.csv").write_text("prompt\nкруг\n", encoding="utf-8")
    path = tmp_path / "right.yaml"
    settings = yaml.safe_load((PACKAGED / "demo.yaml").read_text("utf-8"))
    settings |= {"output": str(tmp_path / "out"), "prompts": {"uri": str(tmp_path / "right.csv")}}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(autouse=True)
def never_draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wrong paths are found before anything is drawn, so nothing may be drawn here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def drawn(*_: object) -> None:
        raise AssertionError("all checks have passed, the run would draw")

    monkeypatch.setattr("rudalle_lib.pipeline.diff.finished_run", drawn)


def snapshot(folder: Path) -> set[tuple[str, int, int]]:
    """Names, kinds and sizes of all files but those of Python and of the lease."""
    return {
        (str(path.relative_to(folder)), path.lstat().st_mode, path.lstat().st_size)
        for path in folder.rglob("*")
        if not path.is_dir() and "lease" not in path.parts
    }


@pytest.mark.parametrize(("words", "parameter", "kind"), wrong(KINDS, is_right_kind))
def test_a_wrong_kind_of_file_is_one_sentence(
    words: tuple[str, ...], parameter: str, kind: str, config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "place" / "path"
    if kind != "below_a_file":
        path.parent.mkdir()
    KINDS[kind](path)
    before = snapshot(tmp_path)
    done = call(words, parameter, str(path), config)
    check(done, str(path))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("words", "parameter", "kind"), wrong(NAMES, is_right_name))
def test_a_wrong_name_is_one_sentence(
    words: tuple[str, ...], parameter: str, kind: str, config: Path, tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    done = call(words, parameter, NAMES[kind], config)
    check(done, NAMES[kind])
    assert snapshot(tmp_path) == before


def test_every_command_with_a_path_is_tested() -> None:
    words = {parameter.values[0] for parameter in PARAMETERS}
    assert {("run",), ("plan",), ("status",), ("verify",), ("replay",), ("gallery",)} <= words
    assert ("models", "convert") in words and len(PARAMETERS) > 15


READING = [one for one in PARAMETERS if one.values[1] in ("url", "output", "prompts")]


@pytest.mark.parametrize(
    ("words", "parameter", "error"),
    [
        pytest.param(
            *one.values,
            error,
            id=f"{one.id}-{errno.errorcode[error]}",
            marks=() if turn % 3 == other % 3 else AT_LENGTH,
        )  # fmt: skip
        for turn, one in enumerate(READING)
        for other, error in enumerate((errno.EACCES, errno.EIO, errno.ESTALE))
    ],
)
def test_an_unreadable_folder_is_one_sentence(
    words: tuple[str, ...],
    parameter: str,
    error: int,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tests may run as root, who can read everything, so the calls of the system fail by order."""
    path = tmp_path / "place" / "path"
    path.parent.mkdir()
    finished(path)
    if parameter == "prompts":
        path = path.parent / "table.csv"

    def failing(call: Callable[..., object]) -> Callable[..., object]:
        def fail(target: object = ".", *arguments: object, **options: object) -> object:
            if isinstance(target, str | bytes | os.PathLike):
                name = os.fsdecode(target)
                if name.startswith(str(path)):
                    raise OSError(error, os.strerror(error), name)
            return call(target, *arguments, **options)

        return fail

    calls = [(os, name) for name in ("scandir", "listdir", "open", "mkdir", "unlink", "replace")]
    for module, name in [*calls, (io, "open"), (builtins, "open")]:
        monkeypatch.setattr(module, name, failing(getattr(module, name)))
    done = call(words, parameter, str(path), config)
    monkeypatch.undo()
    assert done.exit_code in (1, 2), done.stdout
    check(done, str(path))
