"""Texts that look the same are the same prompt; invisible characters make no other one."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.prompts.prompt_texts import normalise

FAMILY = "👩\u200d👩\u200d👧\u200d👦"
ENGLAND = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"

SPECIAL = st.sampled_from(
    "\ufeff\u200b\u2060\u00ad\u200c\u200d\u200e\u202e\ufe0f\u180b\u3164\u2800\u115f\u034f"
    "\U000e0067\U000e0100🏴👩❤1\u20e3aкن\u0915\u094dе\u0308 \n\x00"
)


@pytest.mark.parametrize(
    "text",
    ["\ufeff", "\u200b", "\u2060\u200b ", "\ufe0f", "\u200d\u200c", "\u3164", "\u2800\u2800",
     "\u115f", "\u00ad\n", "\U000e0067", "\u202e\u2066", "\U000e0100", "\u034f"],
)  # fmt: skip
def test_a_text_that_shows_nothing_is_empty(text: str) -> None:
    assert normalise(text) == ""


@pytest.mark.parametrize(
    "letter",
    ["\ufeff", "\u200b", "\u2060", "\u00ad", "\u200d", "\u200c", "\ufe0f", "\u034f", "\u200e",
     "\u202e", "\u2062", "\U000e0067", "\U000e0100", "\u180b"],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 3, 4, 5, 12])
def test_invisible_characters_make_no_other_prompt(letter: str, place: int) -> None:
    text = "красный круг"
    assert normalise(text[:place] + letter + text[place:]) == text


@pytest.mark.parametrize(
    "text",
    [
        FAMILY,
        ENGLAND,
        "👩\u200d🎨 тест",
        "❤\ufe0f",
        "1\ufe0f\u20e3 место",
        "🏳\ufe0f\u200d🌈",
        "نمی\u200cخواهم",
        "क\u094d\u200dष",
        "葛\U000e0100飾",
        "ᠠ\u180b",
    ],
)
def test_joiners_and_selectors_stay_where_they_show(text: str) -> None:
    assert normalise(text) == text


def test_accents_compose_across_what_is_removed() -> None:
    assert normalise("е\u200b\u0308лка") == "ёлка"


def test_blanks_of_all_kinds_are_spaces() -> None:
    assert normalise("a\u3164\u2800b\u00a0\u2003c\x00d") == "a b c d"


@given(st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_only_texts_with_special_characters_are_changed(text: str) -> None:
    """Prompt ids of existing datasets are digests of texts in the form of before."""
    plain = "".join(letter for letter in text if not _was_invisible(letter))
    old = " ".join(unicodedata.normalize("NFC", plain).split())
    old = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in old)
    assert normalise(plain) == " ".join(old.split())


def _was_invisible(letter: str) -> bool:
    kind = unicodedata.category(letter)
    return kind == "Cf" or letter in "\u2800\u3164\uffa0\u115f\u1160\u17b4\u17b5\u034f" or (
        "VARIATION SELECTOR" in unicodedata.name(letter, "")
    )  # fmt: skip


@given(st.lists(SPECIAL, max_size=12).map("".join) | st.text(max_size=20))
@settings(max_examples=500, deadline=None)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert once == once.strip() and "  " not in once
