"""The gallery: a static page with the pictures of a run and what was set aside, and why.

The page needs no network, no server and no build step: style, script and fonts are inside it. What
it shows comes in chunks, small scripts beside it that hold nothing but JSON, so it opens from
`file://` as from a bucket; published pictures are linked relative to it. With its rows inside, and
links that are whole URLs, it is one file to pass on.

Prompts are written by anyone: they reach the page only as JSON whose `<`, `>` and `&` are escaped,
the script puts them in as text, and the page's content policy lets no other inline script run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    "unsafe": ("Unsafe", "The prompt or the picture is of what the run keeps out."),
    "decode_error": ("Not decoded", "The picture could not be made or read."),
}
"""Reason code -> what people read: a label, and one sentence about it."""


@dataclass(frozen=True)
class Entry:
    """A tile: a published picture (no `reason`), a rejected one, or a rejected prompt (no id).

    `source` is a picture's URL, relative to the page or whole, or a data URI; `details` is all else
    that is known of it, by name.
    """

    image_id: str | None
    prompt_id: str | None
    caption: str
    translation: str | None = None
    reason: str | None = None
    detail: str | None = None
    score: float | None = None
    seed: int | None = None
    model: str | None = None
    source: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """What the page says of the whole run; entries come in chunks, or in `rows`.

    `replay` is the command that draws a picture again, `{id}` in place of its id.
    """

    title: str
    facts: Sequence[tuple[str, str]]  # (figure, label), such as ("118", "published")
    models: Sequence[str]
    rejected_totals: Mapping[str, int]  # reason code -> rows
    replay: str
    chunks: Sequence[str] = ()  # URLs, relative to the page
    rows: Sequence[Entry] = ()


def render_gallery(gallery: Gallery) -> str:
    """The whole page as HTML text."""
    script = read_template("gallery.js").decode()
    script_digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": html.escape(gallery.title),
        "script_digest": script_digest,
        "font_regular": base64.b64encode(read_template("Manrope-Regular.ttf")).decode(),
        "font_semibold": base64.b64encode(read_template("Manrope-SemiBold.ttf")).decode(),
        "style": read_template("gallery.css").decode(),
        "script": script,
        "data": script_safe_json(_data(gallery)),
    }
    return fill("gallery.html", parts)


def render_chunk(entries: Sequence[Entry]) -> str:
    """Entries as a script that gives them to the page."""
    return f"galleryRows({script_safe_json([_row(entry) for entry in entries])});\n"


def script_safe_json(value: Any) -> str:
    """JSON that can stand inside a `<script>` element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    # Half a surrogate pair cannot be written as UTF-8.
    text = text.encode("utf-8", "replace").decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(gallery: Gallery) -> dict[str, Any]:
    return {
        "facts": [list(fact) for fact in gallery.facts],
        "models": list(gallery.models),
        "replay": gallery.replay,
        "reasons": REASONS,
        "totals": {
            reason: gallery.rejected_totals[reason] for reason in _reasons_in_order(gallery)
        },
        "chunks": list(gallery.chunks),
        "rows": [_row(entry) for entry in gallery.rows],
    }


def _row(entry: Entry) -> dict[str, Any]:
    row = {
        "id": entry.image_id,
        "prompt": entry.prompt_id,
        "caption": entry.caption,
        "translation": entry.translation,
        "reason": entry.reason,
        "detail": entry.detail,
        "score": entry.score,
        # Seeds have 63 bits, a number in JavaScript 53: they travel as text.
        "seed": None if entry.seed is None else str(entry.seed),
        "model": entry.model,
        "source": entry.source,
        "details": {name: _shown(value) for name, value in entry.details.items()},
    }
    return {name: value for name, value in row.items() if value is not None}


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _reasons_in_order(gallery: Gallery) -> list[str]:
    totals = Counter(gallery.rejected_totals)
    known = [reason for reason in REASONS if totals[reason]]
    return known + sorted(reason for reason in totals if totals[reason] and reason not in REASONS)
