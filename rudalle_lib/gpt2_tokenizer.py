"""Byte-level byte-pair encoding, for the text tower of ruCLIP Small.

Source: the GPT-2 tokenizer of transformers with the special pieces of ruGPT-3, as used in
ai-forever/ru-clip, `deprecated/clip/evaluate/utils.py`. Written out in a caption, a special piece
such as `</s>` is plain text here, so that no caption can end itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from rudalle_lib.errors import WeightsError
from rudalle_lib.tokenizer import EncodedText

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


class Gpt2Tokenizer:
    """Turns captions into the ids of ruGPT-3. Make one with `Gpt2Tokenizer.load`."""

    def __init__(self, engine: Engine, bos: int, eos: int, pad: int) -> None:
        self._engine = engine
        self.bos, self.eos, self.pad = bos, eos, pad

    @classmethod
    def load(cls, vocabulary: Path, merges: Path) -> Self:
        """Read `vocab.json` and `merges.txt`.

        Raises:
            WeightsError: a file is missing or is not what its name says.
        """
        try:
            ids = json.loads(vocabulary.read_text("utf-8"))
            bos, eos, pad = (int(ids[piece]) for piece in (BOS, EOS, PAD))
            engine = Engine(BPE.from_file(str(vocabulary), str(merges)))
        except Exception as error:  # the engine raises bare Exceptions
            raise WeightsError(
                f"{vocabulary} and {merges.name} are not a GPT-2 tokenizer "
                f"({type(error).__name__}: {error}); expected the ids of pieces, with {BOS}, {EOS} "
                f"and {PAD}, and a list of merges"
            ) from error
        engine.pre_tokenizer = ByteLevel(add_prefix_space=False)
        return cls(engine, bos, eos, pad)

    @property
    def vocab_size(self) -> int:
        """How many pieces there are; every id is smaller, if the vocabulary has no holes."""
        return max(self._engine.get_vocab().values()) + 1

    def encode_clip(self, text: str, length: int) -> EncodedText:
        """`[BOS] + pieces + [EOS]`, padded to `length`; a cut text keeps its EOS.

        Runs of whitespace become one space, as in the original; letters keep their case.
        """
        cleaned = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
        pieces = self._engine.encode(cleaned, add_special_tokens=False).ids
        kept = pieces[: length - 2]
        ids = [self.bos, *kept, self.eos]
        return EncodedText(ids + [self.pad] * (length - len(ids)), len(kept) < len(pieces))
