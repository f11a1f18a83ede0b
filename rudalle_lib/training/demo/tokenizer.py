"""Train a byte-pair tokenizer on captions, in the format of the published models.

    python -m rudalle_lib.training.demo.tokenizer --text captions.txt --out bpe.model \\
        --vocab-size 256

Source: https://github.com/VKCOM/YouTokenToMe
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rudalle_lib.errors import ConfigError

PAD, UNK, BOS, EOS = 0, 1, 2, 3
"""Ids of the special pieces, the same in all published models."""

RUNS = 9
"""Number of trainings from which the most common result is kept."""


def train_tokenizer(text: Path, out: Path, vocab_size: int) -> Path:
    """Learn a byte-pair vocabulary from a text file and write it to `out`.

    The result is deterministic: the same text returns the same file, byte for byte. Even with one
    worker, youtokentome's two threads race if candidates tie. On one CPU at most 1 in 12 trainings
    differs (measured on captions, 60 runs each); on two CPUs with other work, as many as half. So
    it is trained `RUNS` times on one CPU, and the most common result is kept.

    Args:
        text: file with one caption per line, in lower case, because texts are encoded in lower
            case.
        out: the file to write.
        vocab_size: number of pieces, if the text has enough.

    Returns:
        `out`.

    Raises:
        ConfigError: if youtokentome is not installed, the text is missing, or the vocabulary is too
            small for its characters.
    """
    try:
        youtokentome = importlib.import_module("youtokentome")
    except ImportError as error:
        raise ConfigError(
            "training a tokenizer needs the package youtokentome, which is not installed: "
            "run `make install`, which builds it"
        ) from error
    if not text.is_file():
        raise ConfigError(f"cannot train a tokenizer: there is no text file {text}")
    out.parent.mkdir(parents=True, exist_ok=True)

    def train_once() -> bytes:
        youtokentome.BPE.train(
            data=str(text), model=str(out), vocab_size=vocab_size, coverage=1.0, n_threads=1,
            pad_id=PAD, unk_id=UNK, bos_id=BOS, eos_id=EOS,
        )  # fmt: skip
        return out.read_bytes()

    try:
        with _silent_stderr(), _on_one_cpu():
            results = Counter(train_once() for _ in range(RUNS))
    except ValueError as error:
        raise ConfigError(
            f"cannot train a tokenizer of {vocab_size} pieces on {text}: {error}"
        ) from error
    out.write_bytes(results.most_common(1)[0][0])
    return out


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2, to which youtokentome logs from C++."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(nowhere)
        os.close(saved)


@contextlib.contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Keep this thread, and those that it starts, on one CPU, where the system can do so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def main() -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(description="Train a byte-pair tokenizer on captions.")
    parser.add_argument(
        "--text", type=Path, required=True, help="text file with one caption per line"
    )
    parser.add_argument("--out", type=Path, required=True, help="path of the bpe.model to write")
    parser.add_argument("--vocab-size", type=int, required=True, help="number of pieces")
    arguments = parser.parse_args()
    train_tokenizer(arguments.text, arguments.out, arguments.vocab_size)


if __name__ == "__main__":
    main()
