"""The optional columns of the published metadata: what a run measured or was asked to publish.

They follow the columns of `ImageRecord` and are described like them. A shard has only those that
its settings ask for; `datasets` and `read_images` fill in nulls for others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from rudalle_lib.config.sections import PublishConfig
from rudalle_lib.images.likeness import pack_vectors
from rudalle_lib.schema.decisions import Alike
from rudalle_lib.schema.records import ScoreRecord, TokensRecord, TranslationRecord


class Drawn(NamedTuple):
    """What the stages know of one image."""

    tokens: TokensRecord
    score: ScoreRecord
    translation: TranslationRecord
    alike: Alike | None = None


class Column(NamedTuple):
    """A column of one value a row: its type, its description, and how it is read."""

    kind: pa.DataType
    about: str
    value: Callable[[Drawn], Any]


COLUMNS: Mapping[str, Column] = {
    "second_score": Column(
        pa.float32(),
        "Cosine of text and image features of score.second_model",
        lambda row: row.score.second_score,
    ),
    "phash": Column(
        pa.string(),
        "Perceptual hash of the image as decoded, 64 bits in hex",
        lambda row: row.score.phash,
    ),
    "duplicate_of": Column(
        pa.string(),
        "Earlier image that a rule with flag finds it to be a near-duplicate of",
        lambda row: row.alike and row.alike.image_id,
    ),
    "duplicate_distance": Column(
        pa.float32(),
        "Cosine distance of its embedding to that image's",
        lambda row: row.alike and row.alike.distance,
    ),
    "duplicate_bits": Column(
        pa.int32(),
        "Bits of 64 in which its perceptual hash differs from that image's",
        lambda row: row.alike and row.alike.bits,
    ),
    "translation_confidence": Column(
        pa.float32(),
        "Mean log-probability of the translation's tokens, nats; null if there was none to make",
        lambda row: row.translation.confidence,
    ),
    "translation_ratio": Column(
        pa.float32(),
        "Characters of the translation per character of the prompt",
        lambda row: _length_ratio(row.translation),
    ),
    "unknown_words": Column(
        pa.string(),
        "Words that the translator hardly knows, separated by spaces",
        lambda row: row.translation.unknown_words,
    ),
    "translation_similarity": Column(
        pa.float32(),
        "Cosine of ruCLIP's features of the prompt and its translation",
        lambda row: row.score.translation_similarity,
    ),
}
"""Columns that a shard has if one of its images has a value."""

EMBEDDING, TOKENS, TOKEN_COLUMNS, PROBE = "embedding", "tokens", "token_columns", "probe_"
"""Names of the other columns; the last one is followed by the name of a probe."""

ABOUT_PROBES = "Value of the probe score.probes."
"""Beginning of the description of a probe's column."""

ABOUT = {
    EMBEDDING: "Unit-length image features of the scorer, of the image as decoded",
    TOKENS: "Image tokens, row by row",
    TOKEN_COLUMNS: "Image tokens per row",
}
"""Descriptions of columns that are not in `COLUMNS`."""


def image_columns(rows: Sequence[Drawn], section: PublishConfig) -> pa.Table:
    """The optional columns of published images.

    Args:
        rows: the images, in order.
        section: whether embeddings and tokens are published.

    Returns:
        `image_id`, then the columns; only `image_id` if there are none.
    """
    table = pa.table({"image_id": pa.array([row.tokens.image_id for row in rows], pa.string())})
    for name in sorted({name for row in rows for name in row.score.measures}):
        values = [row.score.measures.get(name) for row in rows]
        field = _field(PROBE + name, pa.float32(), ABOUT_PROBES + name)
        table = table.append_column(field, pa.array(values, pa.float32()))
    for name, column in COLUMNS.items():
        values = [column.value(row) for row in rows]
        if any(value is not None for value in values):
            field = _field(name, column.kind, column.about)
            table = table.append_column(field, pa.array(values, column.kind))
    stored = [row.score.embedding for row in rows]
    if section.embeddings and any(stored):
        embeddings = pack_vectors(stored)
        field = _field(EMBEDDING, embeddings.type, ABOUT[EMBEDDING])
        table = table.append_column(field, embeddings)
    if section.tokens:
        lists = pa.array([row.tokens.tokens for row in rows], pa.list_(pa.int32()))
        table = table.append_column(_field(TOKENS, lists.type, ABOUT[TOKENS]), lists)
        widths = pa.array([row.tokens.columns for row in rows], pa.int32())
        table = table.append_column(_field(TOKEN_COLUMNS, pa.int32(), ABOUT[TOKEN_COLUMNS]), widths)
    return table


def is_ours(field: pa.Field) -> bool:
    """Whether a column is one of these, not a pass-through column of the same name."""
    about = (field.metadata or {}).get(b"description", b"").decode(errors="replace")
    if field.name.startswith(PROBE):
        return about == ABOUT_PROBES + field.name.removeprefix(PROBE)
    known = {name: column.about for name, column in COLUMNS.items()} | ABOUT
    return field.name in known and about == known[field.name]


def _length_ratio(row: TranslationRecord) -> float | None:
    translated = row.lang != "ru" and bool(row.text_ru) and bool(row.text)
    return round(len(row.text_ru or "") / len(row.text), 4) if translated else None


def _field(name: str, kind: pa.DataType, about: str) -> pa.Field:
    return pa.field(name, kind, metadata={"description": about})
