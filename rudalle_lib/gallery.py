"""The gallery: one static HTML page with the pictures of a run and what was set aside, and why.

The page needs no network, no server and no build step: style, script, fonts and data are inside,
and published pictures are linked relative to it, so it opens from `file://` as from a bucket.
Prompts are written by anyone: they reach the page only as JSON whose `<`, `>` and `&` are escaped,
the script puts them in as text, and the page's content policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rudalle_lib.templating import fill, read_template

REASONS = {
    "empty_prompt": ("No text", "The prompt was empty or null."),
    "bad_type": ("Wrong type", "A value was not of the type that its column needs."),
    "bad_override": ("Bad override", "A per-prompt setting was out of its range."),
    "bad_prompt_id": (
        "Unusable prompt id",
        "An id has 1-64 of the characters A-Z a-z 0-9 . _ -",
    ),
    "bad_image_prompt": (
        "Unusable image prompt",
        "The picture to draw on from was not there, not a picture, or did not fit.",
    ),
    "too_long": ("Too long", "The prompt was longer than the run allows."),
    "duplicate": ("Duplicate", "The same prompt came earlier in the table."),
    "translation_failed": ("Not translated", "The translator gave no text."),
    "below_threshold": (
        "Below the minimum score",
        "Picture and prompt agree too little.",
    ),
    "not_in_best_k": (
        "Not among the best of its prompt",
        "Other pictures of the same prompt scored higher.",
    ),
    "decode_error": ("Not decoded", "The picture could not be made or read."),
}
"""Reason code -> what people read: a label, and one sentence about it."""


@dataclass(frozen=True)
class Picture:
    """A published picture; `source` is its URL relative to the page, sizes are in pixels."""

    image_id: str
    caption: str
    translation: str | None
    score: float | None
    seed: int
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Rejected:
    """A prompt or picture set aside; `source` is a small picture as a data URI, if there is one."""

    image_id: str | None
    caption: str
    reason: str
    detail: str | None
    score: float | None = None
    source: str | None = None
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Gallery:
    """What the page shows. Lists may be shorter than their totals; the page then says so."""

    title: str
    facts: Sequence[tuple[str, str]]  # (figure, label), such as ("118", "published")
    models: Sequence[str]
    published: Sequence[Picture]
    published_total: int
    rejected: Sequence[Rejected]
    rejected_totals: dict[str, int]  # reason code -> rows


def render_gallery(gallery: Gallery) -> str:
    """The whole page as HTML text."""
    script = read_template("gallery.js").decode()
    script_digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": html.escape(gallery.title),
        "script_digest": script_digest,
        "font_regular": base64.b64encode(read_template("Manrope-Regular.ttf")).decode(),
        "font_semibold": base64.b64encode(read_template("Manrope-SemiBold.ttf")).decode(),
        "script": script,
        "data": script_safe_json(_data(gallery)),
    }
    return fill("gallery.html", parts)


def script_safe_json(value: Any) -> str:
    """JSON that can stand inside a `<script>` element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair cannot be written as UTF-8.
    text = text.encode("utf-8", "replace").decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(gallery: Gallery) -> dict[str, Any]:
    return {
        "facts": [list(fact) for fact in gallery.facts],
        "models": list(gallery.models),
        # Seeds have 63 bits, a number in JavaScript 53: they travel as text.
        "published": [asdict(p) | {"seed": str(p.seed)} for p in gallery.published],
        "published_total": gallery.published_total,
        "rejected": [_group(gallery, reason) for reason in _reasons_in_order(gallery)],
        "rejected_total": sum(gallery.rejected_totals.values()),
    }


def _reasons_in_order(gallery: Gallery) -> list[str]:
    totals = Counter(gallery.rejected_totals)
    known = [reason for reason in REASONS if totals[reason]]
    return known + sorted(reason for reason in totals if totals[reason] and reason not in REASONS)


def _group(gallery: Gallery, reason: str) -> dict[str, Any]:
    label, about = REASONS.get(reason, (reason, ""))
    items = [asdict(rejected) for rejected in gallery.rejected if rejected.reason == reason]
    return {
        "reason": reason,
        "label": label,
        "about": about,
        "total": gallery.rejected_totals[reason],
        "items": items,
    }
