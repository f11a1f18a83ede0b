"""Byte-level byte-pair encoding for the text tower of ruCLIP Small.

Source: the GPT-2 tokenizer of transformers with the special pieces of ruGPT-3, as used in
ai-forever/ru-clip, `deprecated/clip/evaluate/utils.py`. Unlike there, a special piece that is
written out in a caption, such as `</s>`, is encoded as plain text, so no caption can end itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from rudalle_lib.errors import WeightsError
from rudalle_lib.storage.small_files import (
    MAX_VOCABULARY_BYTES,
    TEXT,
    read_small,
    read_vocabulary,
)
from rudalle_lib.text.tokenizer import EncodedText

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


class Gpt2Tokenizer:
    """Encodes captions as ids of ruGPT-3; `Gpt2Tokenizer.load` reads one."""

    def __init__(self, engine: Engine, bos: int, eos: int, pad: int) -> None:
        self._engine = engine
        self.bos, self.eos, self.pad = bos, eos, pad

    @classmethod
    def load(cls, vocabulary: Path, merges: Path) -> Self:
        """Read `vocab.json` and `merges.txt`.

        Raises:
            WeightsError: a file is missing, or is not part of a GPT-2 tokenizer.
        """
        try:
            ids = read_vocabulary(vocabulary)
            bos, eos, pad = (ids[piece] for piece in (BOS, EOS, PAD))
            read_small(merges, MAX_VOCABULARY_BYTES, TEXT)
            engine = Engine(BPE.from_file(str(vocabulary), str(merges)))
        except Exception as error:  # the engine raises bare Exceptions
            raise WeightsError(
                f"{vocabulary} and {merges.name} are not a GPT-2 tokenizer "
                f"({type(error).__name__}: {error}); expected a JSON object of ids by piece, with "
                f"{BOS}, {EOS} and {PAD}, and a list of merges"
            ) from error
        engine.pre_tokenizer = ByteLevel(add_prefix_space=False)
        return cls(engine, bos, eos, pad)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, which is the number of pieces if no id is unused."""
        return max(self._engine.get_vocab().values()) + 1

    def knows(self, text: str) -> bool:
        """True: it has a piece for every byte."""
        return True

    def encode_clip(self, text: str, length: int) -> EncodedText:
        """Encode a caption for ruCLIP Small: `[BOS] + pieces + [EOS]`, padded to `length`.

        A caption that is too long is truncated before its EOS. Runs of whitespace become one space,
        as in the original. The text is not lower-cased.
        """
        cleaned = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
        pieces = self._engine.encode(cleaned, add_special_tokens=False).ids
        kept = pieces[: length - 2]
        ids = [self.bos, *kept, self.eos]
        return EncodedText(ids + [self.pad] * (length - len(ids)), len(kept) < len(pieces))
