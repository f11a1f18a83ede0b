"""Byte-pair encoding of captions for the published ruDALL-E and ruCLIP models.

The models were trained with YouTokenToMe, whose `bpe.model` files are plain text. If the
`youtokentome` package is installed, it encodes. Otherwise Hugging Face `tokenizers` does, with the
same pieces and merges, and returns the same ids (`tests/lib/text/test_tokenizer.py`).

Sources: https://github.com/VKCOM/YouTokenToMe (algorithm and file format);
https://github.com/ai-forever/ru-dalle and https://github.com/ai-forever/ru-clip (text layouts).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

from rudalle_lib.errors import ConfigError, WeightsError
from rudalle_lib.storage.small_files import TEXT, read_small

Backend = Literal["auto", "youtokentome", "tokenizers"]
Encode = Callable[[str], list[int]]

PACKAGES = ("youtokentome", "tokenizers")
"""Packages that can encode, in order of preference."""

MAX_MODEL_BYTES = 8 * 2**20
"""Largest `bpe.model`. Published ones have 0.3 MB."""

MAX_PIECE_LENGTH = 1_000
"""Longest piece in characters: every merge may double the length."""

MAX_TOTAL_LENGTH = 2**24
"""Characters of all pieces."""

WORD_MARK = "\u2581"
"""The piece for the space before a word. In a caption it is treated as a space."""

_SPACES = re.compile(f"[ \t\n\v\f\r{WORD_MARK}]+")
"""Word separators: the six spaces of the C locale. Other Unicode spaces count as letters."""

_SURROGATES = re.compile("[\ud800-\udfff]")
"""Unpaired surrogates, which JSON can represent and UTF-8 cannot."""


class EncodedText(NamedTuple):
    """A caption as ids, padded to a fixed length."""

    ids: list[int]
    truncated: bool
    """Whether the caption was too long and was truncated."""


@dataclass(frozen=True)
class BpeModel:
    """The content of a `bpe.model` file."""

    pieces: tuple[str, ...]
    """Pieces by id; special pieces are empty."""
    merges: tuple[tuple[int, int, int], ...]
    """(left, right, merged) ids, in order of priority."""
    unk: int
    pad: int
    bos: int
    eos: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YouTokenToMe model.

        The file has a line `n_characters n_merges`, a line `code_point id` per character, a line
        `left right merged` per merge, and a last line with the ids of UNK, PAD, BOS and EOS.

        Raises:
            WeightsError: the file is missing, is not a YouTokenToMe model, or is too large.
        """
        try:
            content = read_small(path, MAX_MODEL_BYTES, TEXT).decode("ascii")
            return cls._from_lines([tuple(map(int, line.split())) for line in content.splitlines()])
        except OSError as error:
            raise WeightsError(
                f"cannot read the tokenizer model {path}: {error.strerror}"
            ) from error
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise WeightsError(
                f"{path} is not a YouTokenToMe model ({error}); expected the text file `bpe.model` "
                "that belongs to the weights"
            ) from error

    @classmethod
    def _from_lines(cls, lines: list[tuple[int, ...]]) -> Self:
        characters, merges = lines[0]
        if min(lines[0]) < 0 or len(lines) != 2 + characters + merges:
            raise ValueError("the number of lines does not match the first line")
        specials = lines[-1]
        pieces = {id_: chr(code) for code, id_ in lines[1 : 1 + characters]}
        rules = [(left, right, z) for left, right, z in lines[1 + characters : -1]]
        total = 0
        for left, right, merged in rules:
            piece = pieces[left] + pieces[right]
            total += len(piece)
            if len(piece) > MAX_PIECE_LENGTH or total > MAX_TOTAL_LENGTH:
                raise ValueError(f"its pieces are too long, one has {len(piece):,} characters")
            pieces[merged] = piece
        unk, pad, bos, eos = specials
        pieces.update(dict.fromkeys(specials, ""))
        expected = characters + merges + len(set(specials))
        if set(pieces) != set(range(expected)) or len(set(specials)) != 4:
            raise ValueError("the ids are not those from 0 on, each once")
        codes = [code for code, _ in lines[1 : 1 + characters]]
        if len(set(codes)) != characters or ord(WORD_MARK) not in codes:
            raise ValueError("a character is listed twice, or the mark of words is missing")
        if _SURROGATES.search("".join(pieces.values())):
            raise ValueError("one of its characters is not in Unicode")
        ordered = tuple(pieces[id_] for id_ in range(len(pieces)))
        return cls(ordered, tuple(rules), unk, pad, bos, eos)


class Tokenizer:
    """Encodes captions as ids and decodes ids; `Tokenizer.load` reads one."""

    def __init__(self, model: BpeModel, encode: Encode, backend: str) -> None:
        self.model = model
        self.backend = backend
        self._encode = encode

    @classmethod
    def load(cls, path: str | Path, backend: Backend = "auto") -> Self:
        """Read a `bpe.model` file.

        Args:
            path: the file.
            backend: "youtokentome", "tokenizers", or "auto" for the first one installed.

        Raises:
            WeightsError: the file is missing or is not a YouTokenToMe model.
            ConfigError: the backend is unknown or not installed.
        """
        model = BpeModel.read(Path(path))
        chosen = _choose_backend(backend)
        if chosen == "youtokentome":
            return cls(model, _youtokentome_encoder(Path(path)), chosen)
        return cls(model, _tokenizers_encoder(model), chosen)

    @property
    def vocab_size(self) -> int:
        """Number of pieces, special ones included."""
        return len(self.model.pieces)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without lower-casing, special ids or truncation."""
        return self._encode(_SURROGATES.sub("\ufffd", text))

    def knows(self, text: str) -> bool:
        """Whether it has pieces for all characters of a text."""
        return self.model.unk not in self.encode(text)

    def encode_text(self, text: str, length: int) -> EncodedText:
        """Encode a caption for the decoder: `[BOS] + pieces + [EOS]`, padded to `length`.

        The caption is lower-cased and stripped. One that is too long is truncated at `length`,
        without an EOS, as in ruDALL-E.
        """
        ids = [self.model.bos, *self.encode(text.lower().strip()), self.model.eos]
        return EncodedText(self._pad(ids[:length], length), len(ids) > length)

    def encode_clip(self, text: str, length: int = 77) -> EncodedText:
        """Encode a caption for ruCLIP: like `encode_text`, but a truncated one keeps its EOS."""
        pieces = self.encode(text.lower().strip())
        ids = [self.model.bos, *pieces[: length - 2], self.model.eos]
        return EncodedText(self._pad(ids, length), len(pieces) > length - 2)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without special ids and the decoder's position pads."""
        pieces = (self.model.pieces[id_] for id_ in ids if 0 <= id_ < self.vocab_size)
        return "".join(pieces).replace(WORD_MARK, " ").removeprefix(" ")

    def _pad(self, ids: list[int], length: int) -> list[int]:
        return ids + [self.model.pad] * (length - len(ids))


def _choose_backend(backend: Backend) -> str:
    if backend not in ("auto", *PACKAGES):
        known = ", ".join(PACKAGES)
        raise ConfigError(f"unknown tokenizer backend {backend!r}; expected auto, {known}")
    candidates = PACKAGES if backend == "auto" else (backend,)
    for name in candidates:
        if importlib.util.find_spec(name) is not None:
            return name
    raise ConfigError(f"the tokenizer backend {backend!r} is not installed; use backend 'auto'")


def _youtokentome_encoder(path: Path) -> Encode:
    youtokentome = importlib.import_module("youtokentome")
    bpe = youtokentome.BPE(model=str(path), n_threads=1)

    def encode(text: str) -> list[int]:
        ids: list[int] = bpe.encode([text])[0]
        return ids

    return encode


def _tokenizers_encoder(model: BpeModel) -> Encode:
    """BPE and Metaspace of Hugging Face `tokenizers` with the same pieces and merges."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Metaspace

    # Special pieces get names with a space, which no word contains.
    vocab = {piece or f" {id_}": id_ for id_, piece in enumerate(model.pieces)}
    if len(vocab) != len(model.pieces):
        raise WeightsError(
            "two ids have the same piece; install the package youtokentome for this model"
        )
    merges = [(model.pieces[left], model.pieces[right]) for left, right, _ in model.merges]
    # fuse_unk: a run of unknown characters within a word is one UNK, as in YouTokenToMe.
    try:
        bpe = BPE(vocab=vocab, merges=merges, unk_token=f" {model.unk}", fuse_unk=True)
    except Exception as error:  # the library raises bare Exceptions
        raise WeightsError(f"the pieces of a tokenizer do not fit together: {error}") from error
    tokenizer = HuggingFaceTokenizer(bpe)
    tokenizer.pre_tokenizer = Metaspace(WORD_MARK, prepend_scheme="always", split=True)

    def encode(text: str) -> list[int]:
        words = " ".join(word for word in _SPACES.split(text) if word)
        return tokenizer.encode(words).ids if words else []

    return encode
