"""Training of a byte-pair tokenizer on captions, in the format of the published models.

    python -m rudalle_lib.training.tokenizer --text captions.txt --out bpe.model --vocab-size 256

Source: https://github.com/VKCOM/YouTokenToMe
"""

import argparse
import contextlib
import importlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rudalle_lib.errors import ConfigError

PAD, UNK, BOS, EOS = 0, 1, 2, 3
"""Ids of the special pieces, the same in every published model."""

RUNS = 9
"""Trainings of which the commonest result is kept."""


def train_tokenizer(text: Path, out: Path, vocab_size: int) -> Path:
    """Learn `vocab_size` pieces from a text file, one caption a line, and write them to `out`.

    Texts are encoded in lower case, so captions should be given in lower case. The same text gives
    the same file, byte for byte. Fewer pieces come out where the text does not hold so many.

    Even with one worker, youtokentome's two threads race where candidates tie, and about one run in
    twenty comes out differently (measured on captions, 60 runs). So it runs `RUNS` times, and the
    commonest result is kept.

    Raises:
        ConfigError: youtokentome is not installed, the text is missing, or the vocabulary is too
            small for its characters.
    """
    try:
        youtokentome = importlib.import_module("youtokentome")
    except ImportError as error:
        raise ConfigError(
            "training a tokenizer needs the package youtokentome, which is not installed; "
            "`make install` builds it"
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
        with _silent_stderr():
            results = Counter(train_once() for _ in range(RUNS))
    except ValueError as error:
        raise ConfigError(f"cannot train {vocab_size} pieces on {text}: {error}") from error
    out.write_bytes(results.most_common(1)[0][0])
    return out


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send file descriptor 2 to nowhere: youtokentome logs to it from C++."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(nowhere)
        os.close(saved)


def main() -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(description="Train a byte-pair tokenizer on captions.")
    parser.add_argument("--text", type=Path, required=True, help="text file, one caption a line")
    parser.add_argument("--out", type=Path, required=True, help="bpe.model to write")
    parser.add_argument("--vocab-size", type=int, required=True)
    arguments = parser.parse_args()
    train_tokenizer(arguments.text, arguments.out, arguments.vocab_size)


if __name__ == "__main__":
    main()
