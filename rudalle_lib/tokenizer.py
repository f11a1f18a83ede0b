"""Byte-pair encoding of captions, as the published ruDALL-E and ruCLIP models expect it.

The models were trained with YouTokenToMe, whose `bpe.model` files are plain text. Where the
`youtokentome` package is installed it reads them; where it is not, Hugging Face `tokenizers` is
given the same pieces and merges, and returns the same ids (`tests/lib/test_tokenizer.py`).

Source: https://github.com/VKCOM/YouTokenToMe (algorithm and file format);
text layout of https://github.com/ai-forever/ru-dalle and https://github.com/ai-forever/ru-clip.
"""

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

from rudalle_lib.errors import ConfigError, WeightsError

Backend = Literal["auto", "youtokentome", "tokenizers"]
Encode = Callable[[str], list[int]]

PACKAGES = ("youtokentome", "tokenizers")
"""Packages that can encode, the preferred one first."""

WORD_MARK = "\u2581"
"""The piece that stands for the space before a word; written in a text, it is a space."""

_SPACES = re.compile(f"[ \t\n\v\f\r{WORD_MARK}]+")
"""What separates words: the six spaces of the C locale. All other Unicode spaces are letters."""

_SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of characters, which JSON can carry and UTF-8 cannot."""


class EncodedText(NamedTuple):
    """A caption as ids, padded with zeros to the length asked for."""

    ids: list[int]
    truncated: bool
    """Whether the caption was too long, and its end was cut off."""


@dataclass(frozen=True)
class BpeModel:
    """What a `bpe.model` file holds: pieces by id, merges in order of priority, special ids."""

    pieces: tuple[str, ...]
    merges: tuple[tuple[int, int, int], ...]
    """(left, right, merged) ids."""
    unk: int
    pad: int
    bos: int
    eos: int

    @property
    def special(self) -> frozenset[int]:
        """Ids that stand for no text."""
        return frozenset((self.unk, self.pad, self.bos, self.eos))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YouTokenToMe model.

        The file holds one line `n_characters n_merges`, a line `code_point id` a character, a line
        `left right merged` a merge, and a last line with the ids of UNK, PAD, BOS and EOS.

        Raises:
            WeightsError: the file is missing or is not such a model.
        """
        try:
            lines = [tuple(map(int, line.split())) for line in path.read_text("utf-8").splitlines()]
            return cls._from_lines(lines)
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
        (characters, merges), specials = lines[0], lines[1 + sum(lines[0])]
        pieces = {id_: chr(code) for code, id_ in lines[1 : 1 + characters]}
        rules = [(left, right, z) for left, right, z in lines[1 + characters : -1]]
        for left, right, merged in rules:
            pieces[merged] = pieces[left] + pieces[right]
        unk, pad, bos, eos = specials
        pieces.update(dict.fromkeys(specials, ""))
        if len(lines) != 2 + characters + merges or set(pieces) != set(range(len(pieces))):
            raise ValueError("its line count or its ids do not fit its first line")
        ordered = tuple(pieces[id_] for id_ in range(len(pieces)))
        return cls(ordered, tuple(rules), unk, pad, bos, eos)


class Tokenizer:
    """Turns captions into the ids that the networks take, and back.

    Make one with `Tokenizer.load`.
    """

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
        """Ids of a text as it stands: not lower-cased, nothing added, never cut."""
        return self._encode(_SURROGATES.sub("\ufffd", text))

    def encode_text(self, text: str, length: int) -> EncodedText:
        """Lay a caption out for the decoder: lower-cased, stripped, `[BOS] + bpe + [EOS]`, padded.

        A caption that is too long is cut at `length`, which drops its EOS, as in ruDALL-E.
        """
        ids = [self.model.bos, *self.encode(text.lower().strip()), self.model.eos]
        return EncodedText(self._pad(ids[:length], length), len(ids) > length)

    def encode_clip(self, text: str, length: int = 77) -> EncodedText:
        """Lay a caption out for ruCLIP: as for the decoder, but a cut caption keeps its EOS."""
        pieces = self.encode(text.lower().strip())
        ids = [self.model.bos, *pieces[: length - 2], self.model.eos]
        return EncodedText(self._pad(ids, length), len(pieces) > length - 2)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ids and the decoder's position pads leave no trace."""
        pieces = (self.model.pieces[id_] for id_ in ids if 0 <= id_ < self.vocab_size)
        return "".join(pieces).replace(WORD_MARK, " ").removeprefix(" ")

    def _pad(self, ids: list[int], length: int) -> list[int]:
        return ids + [self.model.pad] * (length - len(ids))


def _choose_backend(backend: Backend) -> str:
    if backend not in ("auto", *PACKAGES):
        known = ", ".join(PACKAGES)
        raise ConfigError(f"unknown tokenizer backend {backend!r}; expected auto, {known}")
    wanted = PACKAGES if backend == "auto" else (backend,)
    for name in wanted:
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
    """BPE + Metaspace of Hugging Face `tokenizers` over the same pieces and merges."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Metaspace

    # Special pieces get names with a space in them, which no word can contain.
    vocab = {piece or f" {id_}": id_ for id_, piece in enumerate(model.pieces)}
    if len(vocab) != len(model.pieces):
        raise WeightsError("two ids have the same piece: this model needs the package youtokentome")
    merges = [(model.pieces[left], model.pieces[right]) for left, right, _ in model.merges]
    # fuse_unk: a run of unknown characters within a word is one UNK, as in YouTokenToMe.
    bpe = BPE(vocab=vocab, merges=merges, unk_token=f" {model.unk}", fuse_unk=True)
    tokenizer = HuggingFaceTokenizer(bpe)
    tokenizer.pre_tokenizer = Metaspace(WORD_MARK, prepend_scheme="always", split=True)

    def encode(text: str) -> list[int]:
        words = " ".join(word for word in _SPACES.split(text) if word)
        return tokenizer.encode(words).ids if words else []

    return encode
