"""The least certain translations among the prompts of published images, for the dataset card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rudalle_lib.escaping import markdown_text
from rudalle_lib.pipeline.image_columns import is_ours

SHOWN = 100
"""Translations that the card shows."""

CONFIDENCE = "translation_confidence"

FIGURES = (
    (CONFIDENCE, "Confidence"),
    ("translation_ratio", "Length ratio"),
    ("translation_similarity", "Similarity"),
)
"""Columns of figures, and their headings."""

Row = dict[str, Any]


def with_more(worst: Sequence[Row], metadata: pa.Table) -> list[Row]:
    """The least certain translations so far, with those of one more shard; a row per prompt.

    Args:
        worst: the result so far.
        metadata: of the published images of a shard.
    """
    known = [field.name for field in metadata.schema if is_ours(field)]
    if CONFIDENCE not in known:
        return list(worst)
    optional = [name for name, _ in FIGURES] + ["unknown_words"]
    names = ["prompt_id", "text", "text_ru", *(name for name in optional if name in known)]
    rows = metadata.select(names).to_pylist()
    by_prompt = {row["prompt_id"]: row for row in rows if row[CONFIDENCE] is not None}
    ordered = sorted([*worst, *by_prompt.values()], key=lambda r: (r[CONFIDENCE], r["prompt_id"]))
    return ordered[:SHOWN]


def render_translations(worst: Sequence[Row]) -> str:
    """A section of the card with a Markdown table that can be unfolded; empty without rows."""
    if not worst:
        return ""
    figures = [item for item in FIGURES if any(row.get(item[0]) is not None for row in worst)]
    head = ["Prompt", "Translation", *(title for _, title in figures), "Hardly known words"]
    lines = [f"| {' | '.join(head)} |", f"| --- | --- |{' ---: |' * len(figures)} --- |"]
    for row in worst:
        values = [row.get(name) for name, _ in figures]
        cells = [
            markdown_text(row["text"]),
            markdown_text(row["text_ru"]),
            *("" if value is None else f"{value:.3f}" for value in values),
            markdown_text(row.get("unknown_words") or ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    noun = "translation" if len(worst) == 1 else "translations"
    return "\n".join([
        "\n## Least certain translations",
        "",
        "The confidence is the mean log-probability of the translation's tokens, 0 at best:",
        "prompts that the translator does not know are at the top.",
        "",
        f"<details><summary>{len(worst)} {noun}</summary>",
        "",
        *lines,
        "",
        "</details>",
        "",
    ])  # fmt: skip
