"""Find blocked words in prompts (`publish.blocked_words`).

Texts are compared as people read them: case, ё and е, full-width letters, combining accents and
invisible characters make no difference. Only whole words match. An entry that ends with `*` matches
all words that start with it, which covers the inflected forms of Russian words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from rudalle_lib.schema.records import Reject

WORD = re.compile(r"\w+")

IGNORED = ("Cf", "Mn")
"""Unicode categories of format characters and combining accents, which readers hardly see."""

Words = tuple[str, ...]


def find_blocked_word(blocked: Words, *texts: str | None) -> Reject | None:
    """Check whether a text contains a blocked word or phrase.

    Args:
        blocked: entries of `publish.blocked_words`.
        texts: a prompt in its languages; None is skipped.

    Returns:
        The reason code and an explanation for people; None if no text contains one.
    """
    if blocked:
        for text in texts:
            for word in _matches(blocked, text or ""):
                return Reject("unsafe", f"publish.blocked_words keeps out {word!r}")
    return None


def check_words(blocked: Sequence[str]) -> None:
    """Check the entries of `publish.blocked_words`.

    Raises:
        ValueError: an entry has no words, or a `*` that is not at its end.
    """
    for entry in blocked:
        words = entry.removesuffix("*")
        if "*" in words or not WORD.search(words[-1:]):
            raise ValueError(
                "expected words or phrases that end with a letter or digit, or with * after one, "
                f"found {entry!r}"
            )


def _matches(blocked: Words, text: str) -> Iterator[str]:
    """The blocked entries that a text contains."""
    whole, prefixes, max_words = _tables(blocked)
    words = _words(text)
    for start in range(len(words)):
        for end in range(start + 1, min(start + max_words, len(words)) + 1):
            *head, last = words[start:end]
            if (*head, last) in whole:
                yield whole[*head, last]
            for length in range(1, len(last) + 1):
                if (*head, last[:length]) in prefixes:
                    yield prefixes[*head, last[:length]]


@lru_cache(maxsize=4)
def _tables(blocked: Words) -> tuple[dict[Words, str], dict[Words, str], int]:
    """Entries by their words, entries with `*` by theirs, and the most words of any entry."""
    whole = {_words(entry): entry for entry in blocked if not entry.endswith("*")}
    prefixes = {_words(entry): entry for entry in blocked if entry.endswith("*")}
    return whole, prefixes, max(map(len, (*whole, *prefixes)))


def _words(text: str) -> Words:
    plain = unicodedata.normalize("NFKC", text).casefold().replace("ё", "е")
    if not plain.isascii():
        plain = "".join(letter for letter in plain if unicodedata.category(letter) not in IGNORED)
    return tuple(WORD.findall(plain))
