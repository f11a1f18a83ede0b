"""The texts of prompts in one form: what looks the same is the same prompt.

Prompt ids are digests of these texts and are in existing datasets. So a change may only concern
texts that nobody types on purpose, such as those with invisible characters.
"""

from __future__ import annotations

import re
import unicodedata

# The following are the insides of classes of regular expressions.

INVISIBLE = (
    "\u00ad\u034f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001"
)
"""Characters that never show: soft hyphens, zero-width spaces, byte order marks, word joiners,
marks of direction, invisible operators, controls of shorthand and music."""

BLANKS = "\u2800\u3164\uffa0"
"""Letters that look like a blank: a Braille pattern without dots, fillers of Hangul."""

FILLERS = "\u115f\u1160\u17b4\u17b5"
"""Letters that do not show themselves, but belong to others: of Old Hangul and Khmer."""

JOINERS = "\u200c\u200d"
"""Zero-width joiner and non-joiner, which change the letters next to them, and join emoji."""

JOINING = "\u0600-\u109f\u1700-\u1cff\ua800-\uabff\U00010a00-\U00011fff"
"""Scripts in which joiners change what is seen: Arabic, those of India and its neighbours."""

SELECTORS = "\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
"""Selectors of a form of the character before."""

SELECTABLE = "\u00a9\u00ae\u1000-\u109f\u1800-\u180a\u1810-\u18af\u2010-\u9fff\ua840-\ua877\uf900-\ufaff\U00010000-\U0003ffff"  # noqa: E501
"""Characters that have several forms: symbols, emoji, ideographs, Mongolian, Myanmar."""

EMOJI = "\u00a9\u00ae\u203c-\u2bff\u3030-\u3299\U0001f000-\U0001faff"
"""Characters that joiners combine into one emoji."""

FLAG, TAGS = "\U0001f3f4", "\U000e0020-\U000e007f"
"""The black flag, and the letters after it that name a country."""

_SPECIAL = re.compile(f"[{INVISIBLE}{BLANKS}{FILLERS}{JOINERS}{SELECTORS}{TAGS}]")
_INVISIBLE = re.compile(f"[{INVISIBLE}]")
_BLANK = re.compile(f"[{BLANKS}]")
_OTHER_TAGS = re.compile(f"(?<![{FLAG}{TAGS}])[{TAGS}]+")
_OTHER_SELECTORS = re.compile(f"(?<![{SELECTABLE}])[{SELECTORS}](?!\u20e3)")
_SEVERAL_JOINERS = re.compile(f"([{JOINERS}])[{JOINERS}]+")
_OTHER_JOINERS = re.compile(
    f"(?<![{JOINING}{EMOJI}{SELECTORS}{TAGS}])[{JOINERS}]|[{JOINERS}](?![{JOINING}{EMOJI}])"
)
_SHOWS = re.compile(f"[^\\s{FILLERS}{JOINERS}{SELECTORS}{TAGS}]")


def normalise(text: str) -> str:
    """Unicode NFC without control and invisible characters, and with single spaces inside.

    Joiners and selectors stay where they change what is seen. A text that shows nothing is empty.
    """
    if not text.isascii():
        if _SPECIAL.search(text):
            text = _without_invisible(text)
        text = unicodedata.normalize("NFC", text)
    text = " ".join(text.split())
    if text.isprintable():
        return text
    plain = (" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    return " ".join("".join(plain).split())


def _without_invisible(text: str) -> str:
    text = _BLANK.sub(" ", _INVISIBLE.sub("", text))
    text = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    for others in (_OTHER_TAGS, _OTHER_SELECTORS):
        text = others.sub("", text)
    text = _OTHER_JOINERS.sub("", _SEVERAL_JOINERS.sub(r"\1", text))
    return text if _SHOWS.search(text) else ""
