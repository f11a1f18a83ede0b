"""The gallery: a static page with the published and the rejected images of a run.

The page needs no network, no server and no build step: style, script and fonts are embedded. Its
entries are loaded from chunks, small scripts next to the page that contain only JSON, so it works
from `file://` as well as from a bucket; published images are linked by relative URLs. With embedded
entries and absolute URLs, it is a single file that can be shared.

Prompts are untrusted: they reach the page only as JSON with `<`, `>` and `&` escaped, the script
inserts them as text, and the content security policy allows no other inline script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rudalle_lib.escaping import html_text
from rudalle_lib.report.templates import fill, read_template
from rudalle_lib.schema.tables import as_text, row_as_json

REASON_LABELS = {
    "empty_prompt": ("No text", "The prompt was empty or null."),
    "bad_type": ("Wrong type", "A value did not have the type of its column."),
    "bad_override": ("Bad override", "A per-prompt setting was out of range."),
    "bad_prompt_id": (
        "Invalid prompt id",
        "An id consists of 1 to 64 of the characters A-Z a-z 0-9 . _ -",
    ),
    "bad_image_prompt": (
        "Invalid image prompt",
        "The image prompt is missing, is not an image, or does not fit.",
    ),
    "too_long": ("Too long", "The prompt is longer than the run allows."),
    "duplicate": ("Duplicate", "The same prompt occurs earlier in the table."),
    "translation_failed": ("Not translated", "The translator returned no usable text."),
    "below_threshold": (
        "Below the minimum score",
        "The image matches the prompt too little.",
    ),
    "not_in_best_k": (
        "Not among the best of its prompt",
        "Other images of the same prompt have higher scores.",
    ),
    "same_image": (
        "Same image",
        "The same image of this prompt is published already.",
    ),
    "near_duplicate": ("Near-duplicate", "It looks like an image that is published already."),
    "outside_limits": (
        "Outside the limits of a measure",
        "A probe or the second score is too low or too high.",
    ),
    "uncertain_translation": (
        "Uncertain translation",
        "The translator was not sure of the prompt, so nothing was drawn.",
    ),
    "not_in_best_share": (
        "Not in the best share",
        "Other images of its group have higher scores, and only a share of it is kept.",
    ),
    "group_full": ("Group full", "Other images of its group have higher scores."),
    "over_budget": ("Over budget", "Other images of the dataset have higher scores."),
    "by_hand": ("Rejected by hand", "Somebody has looked at this image and rejected it."),
    "unsafe": ("Unsafe", "The run excludes content like this prompt or image."),
    "decode_error": ("Not decoded", "The image could not be decoded or read."),
}
"""By reason code: the label that the page shows, and a sentence that explains it."""


@dataclass(frozen=True)
class Entry:
    """One tile: a published image (no `reason`), a rejected image, or a rejected prompt (no id)."""

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
    """URL of the image, relative to the page or absolute, or a data URI."""

    details: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that is known about the entry, by name."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    """Pass-through columns of the prompt table, by name; the page can group by them."""

    similar: Sequence[str] = ()
    """Ids of the most similar images, the most similar first."""

    thumbnail: str | None = None
    """URL of a smaller image, which tiles show; they show the image itself if there is none."""


@dataclass(frozen=True)
class Gallery:
    """A gallery: facts about the run, and its entries, either in `chunks` or in `rows`."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Pairs of a figure and a label, such as ("118", "published")."""

    models: Sequence[str]
    """Registry names."""

    rejected_totals: Mapping[str, int]
    """Rejected prompts and images of the run, by reason code."""

    replay: str
    """The command that draws an image again, with `{id}` in place of the image id."""

    chunks: Sequence[str] = ()
    """URLs of the chunks, relative to the page."""

    rows: Sequence[Entry] = ()
    """Entries embedded in the page."""


def render_gallery(gallery: Gallery) -> str:
    """Render the page as HTML."""
    script = read_template("gallery.js").decode()
    script_digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": html_text(gallery.title),
        "script_digest": script_digest,
        "font_regular": base64.b64encode(read_template("Manrope-Regular.ttf")).decode(),
        "font_semibold": base64.b64encode(read_template("Manrope-SemiBold.ttf")).decode(),
        "style": read_template("gallery.css").decode(),
        "script": script,
        "data": script_safe_json(_page_data(gallery)),
    }
    return fill("gallery.html", parts)


def render_chunk(entries: Sequence[Entry]) -> str:
    """Render entries as a script that adds them to the page."""
    return f"galleryRows({script_safe_json([_row(entry) for entry in entries])});\n"


def script_safe_json(value: Any) -> str:
    """Encode a value as JSON that is safe inside a `<script>` element, whatever text it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=as_text)
    # A lone surrogate cannot be encoded as UTF-8.
    text = text.encode("utf-8", "replace").decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _page_data(gallery: Gallery) -> dict[str, Any]:
    return {
        "facts": [list(fact) for fact in gallery.facts],
        "models": list(gallery.models),
        "replay": gallery.replay,
        "reasons": REASON_LABELS,
        "totals": {reason: gallery.rejected_totals[reason] for reason in _ordered_reasons(gallery)},
        "chunks": list(gallery.chunks),
        "rows": [_row(entry) for entry in gallery.rows],
    }


def _row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": entry.image_id,
        "prompt": entry.prompt_id,
        "caption": entry.caption,
        "translation": entry.translation,
        "reason": entry.reason,
        "detail": entry.detail,
        "score": entry.score,
        # Seeds have 63 bits, but JavaScript numbers only 53, so seeds are strings.
        "seed": None if entry.seed is None else str(entry.seed),
        "model": entry.model,
        "source": entry.source,
        "thumb": entry.thumbnail,
        "details": {name: _format_value(value) for name, value in entry.details.items()},
        "columns": {name: _format_value(value) for name, value in entry.columns.items()} or None,
        "similar": list(entry.similar) or None,
    }
    return {name: value for name, value in row.items() if value is not None}


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return row_as_json(value) if isinstance(value, dict | list | tuple) else as_text(value)


def _ordered_reasons(gallery: Gallery) -> list[str]:
    totals = Counter(gallery.rejected_totals)
    known = [reason for reason in REASON_LABELS if totals[reason]]
    return known + sorted(
        reason for reason in totals if totals[reason] and reason not in REASON_LABELS
    )
