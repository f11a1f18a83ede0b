"""Words that no published prompt holds: `publish.blocked_words`.

Texts are compared as people read them: case, ё for е, full-width letters, stray accents and
characters that are not seen make no difference. A word counts only as a whole one; with `*` at its
end it stands for every word that begins so, which is what inflected Russian needs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

WORD = re.compile(r"\w+")

UNSEEN = ("Cf", "Mn")
"""Categories of characters that change how a text is stored, but hardly how it is read."""

Words = tuple[str, ...]


def refusal(blocked: Words, *texts: str | None) -> tuple[Literal["unsafe"], str] | None:
    """Reason code and the same for people, if one of the texts holds a blocked word or phrase."""
    if blocked:
        for text in texts:
            for word in _held(blocked, text or ""):
                return "unsafe", f"publish.blocked_words keeps out {word!r}"
    return None


def check_words(blocked: Sequence[str]) -> None:
    """Raise `ValueError` unless every entry has words, and `*` at most at its end."""
    for entry in blocked:
        words = entry.removesuffix("*")
        if "*" in words or not WORD.search(words[-1:]):
            raise ValueError(
                "expected words or phrases that end with a letter or digit, or with * after one, "
                f"found {entry!r}"
            )


def _held(blocked: Words, text: str) -> Iterator[str]:
    """Entries of the list that a text holds, as the list has them."""
    whole, beginnings, longest = _tables(blocked)
    words = _words(text)
    for start in range(len(words)):
        for end in range(start + 1, min(start + longest, len(words)) + 1):
            *head, last = words[start:end]
            if (*head, last) in whole:
                yield whole[*head, last]
            for length in range(1, len(last) + 1):
                if (*head, last[:length]) in beginnings:
                    yield beginnings[*head, last[:length]]


@lru_cache(maxsize=4)
def _tables(blocked: Words) -> tuple[dict[Words, str], dict[Words, str], int]:
    """Entries by their words, those with `*` apart, and how many words the longest has."""
    whole = {_words(entry): entry for entry in blocked if not entry.endswith("*")}
    beginnings = {_words(entry): entry for entry in blocked if entry.endswith("*")}
    return whole, beginnings, max(map(len, (*whole, *beginnings)))


def _words(text: str) -> Words:
    plain = unicodedata.normalize("NFKC", text).casefold().replace("ё", "е")
    if not plain.isascii():
        plain = "".join(letter for letter in plain if unicodedata.category(letter) not in UNSEEN)
    return tuple(WORD.findall(plain))
