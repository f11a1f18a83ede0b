"""Validation of the rows of a prompt table, which becomes prompts and rejects in a stream.

A row that cannot be used becomes a `RejectRecord` with a reason. Only a table that cannot be read
at all is an error. `read_prompt_blocks` returns prompts as Arrow tables with the columns of a plan
file, for bulk work; `read_prompts` returns them one by one.
"""

from __future__ import annotations

import hashlib
import heapq
import importlib.resources
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rudalle_lib.config.inputs import DEMO_PROMPTS, PromptsConfig
from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.digests import canonical_json, digest_of_bytes
from rudalle_lib.errors import PromptError
from rudalle_lib.prompts.blocks import BadRow, Block, Columns, TableOptions, first_rows
from rudalle_lib.prompts.cells import (
    PROMPT_ID,
    RejectedError,
    checked_id,
    is_missing,
    language_code,
    overrides_of,
    prompt_text,
    shorten,
)
from rudalle_lib.prompts.column_types import rows_larger_than
from rudalle_lib.prompts.part_files import read_parts
from rudalle_lib.schema.arrow import schema
from rudalle_lib.schema.records import (
    REJECT_TEXT_LENGTH,
    Overrides,
    PlannedPrompt,
    Prompt,
    Reason,
    RejectRecord,
    reject,
)
from rudalle_lib.schema.table_rows import TableRow
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.reading import TABLE, Reading
from rudalle_lib.text.blocked_words import find_blocked_word

STAGE = "plan"
"""The stage that rejects of the prompt table are recorded under."""

EXTRA = "extra."
"""Prefix of pass-through columns in a plan file."""

MAX_EXTRA_BYTES = 2**18
"""The most bytes of a row's pass-through columns, which are repeated for each of its images."""

SOURCE = ("source_table", "source_row")
"""The columns of a plan that say which row of the prompt table a prompt is. A prompt is the same
wherever its row is, so they are part of no digest."""

OVERRIDES = tuple(schema(Overrides).names)
"""The columns of `Overrides`, in order."""

NO_OVERRIDES = (None,) * len(OVERRIDES)

KNOWN_COLUMNS = ("prompt", "prompt_id", "lang", *OVERRIDES)
"""The columns of a prompt table that have a meaning; the first one is required."""


@dataclass(frozen=True, slots=True)
class PromptBlock:
    """Consecutive rows of a prompt table, validated.

    Attributes:
        prompts: the columns of `plan_schema()`, followed by pass-through columns `extra.<name>`.
        numbers: the row number in the table of each prompt, counted from 1, ascending.
        rejects: the rows that cannot be used.
        reject_numbers: their row numbers, ascending.
    """

    prompts: pa.Table
    numbers: Sequence[int]
    rejects: Sequence[RejectRecord]
    reject_numbers: Sequence[int]


def plan_schema() -> pa.Schema:
    """The columns of a plan file, without the pass-through columns that follow them."""
    return pa.schema([*schema(PlannedPrompt), *schema(Overrides)])


def read_prompts(
    uri: str,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    rules: Reading = TABLE,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Iterator[Prompt | RejectRecord]:
    """Read the rows of a prompt table in order, each as a prompt or a reject.

    Duplicates are not removed here.

    Args:
        uri: path or URL of a file, a folder of part files or a pattern, or `demo://prompts`.
        columns: the table's name of a column by our name, where they differ.
        limit: stop after this many rows.
        rules: for reading the files.
        delimiter: of CSV; None guesses it.
        encoding: of CSV and JSON; None guesses it.

    Raises:
        PromptError: the table has an unknown format, is damaged, or lacks a column.
        StorageError: the file cannot be read.
    """
    for block in read_prompt_blocks(uri, columns, limit, rules, delimiter, encoding):
        prompts = zip(block.numbers, prompts_of(block.prompts), strict=True)
        rejects = zip(block.reject_numbers, block.rejects, strict=True)
        rows: Iterator[tuple[int, Prompt | RejectRecord]]
        rows = heapq.merge(prompts, rejects, key=lambda item: item[0])
        yield from (row for _, row in rows)


def read_prompt_blocks(
    uri: str,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    rules: Reading = TABLE,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Iterator[PromptBlock]:
    """Like `read_prompts`, a few thousand rows at a time."""
    url, name = resolve(uri), public_url(uri)

    def match(names: Sequence[str]) -> Columns:
        return Columns.match(names, KNOWN_COLUMNS, columns or {}, f"The prompt table {name}")

    prompt_column = (columns or {}).get("prompt", "prompt")
    options = TableOptions(match, (prompt_column,), delimiter, encoding, limit)
    for block in first_rows(read_parts(url, name, options, rules), limit):
        yield _validate_block(block, name)


def read_table(source: PromptsConfig, limit: int | None = None) -> Iterator[PromptBlock]:
    """The blocks of the table of a configuration, or its first `limit` rows."""
    return read_prompt_blocks(
        source.uri,
        source.columns,
        source.limit if limit is None else min(limit, source.limit or limit),
        source.reading(),
        source.delimiter,
        source.encoding,
    )


def resolve(uri: str) -> str:
    """The path of the table behind `demo://prompts`; any other URI is returned unchanged.

    Raises:
        PromptError: an unknown `demo://` URI, or the package is incomplete.
    """
    if not uri.startswith("demo://"):
        return uri
    if uri != DEMO_PROMPTS:
        raise PromptError(f"Unknown prompt table {uri}; the one in the package is {DEMO_PROMPTS}.")
    folder = Path(str(importlib.resources.files("rudalle_lib"))) / "demo"
    for ending in ("parquet", "csv", "jsonl"):
        if (folder / f"prompts.{ending}").is_file():
            return str(folder / f"prompts.{ending}")
    raise PromptError(f"{DEMO_PROMPTS} is missing from the package: no {folder}/prompts.parquet.")


def prompts_of(table: pa.Table) -> list[Prompt]:
    """The rows of a table with the columns of a plan file, as prompts."""
    # Plan files of earlier versions lack columns that were added later.
    none = pa.nulls(table.num_rows)
    settings = (table.column(n) if n in table.column_names else none for n in OVERRIDES)
    overrides = zip(*(column.to_pylist() for column in settings), strict=True)
    extras = table.select([name for name in table.column_names if name.startswith(EXTRA)])
    extras = extras.rename_columns([name.removeprefix(EXTRA) for name in extras.column_names])
    rows = extras.to_pylist() if extras.num_columns else [{} for _ in range(table.num_rows)]
    required = (table.column(name).to_pylist() for name in ("prompt_id", "text", "lang"))
    return [
        Prompt(prompt_id, text, lang, None, Overrides(*values), extra, source)
        for prompt_id, text, lang, values, extra, source in zip(
            *required, overrides, rows, sources_of(table), strict=True
        )
    ]


def sources_of(table: pa.Table) -> list[TableRow | None]:
    """The row of the prompt table of each row of a plan; None where it is not known."""
    if not set(SOURCE) <= set(table.column_names):
        return [None] * table.num_rows
    values = (table.column(name).to_pylist() for name in SOURCE)
    return [
        None if file is None or number is None else TableRow(file, number)
        for file, number in zip(*values, strict=True)
    ]


def extras_of(table: pa.Table) -> pa.Table:
    """`prompt_id` and the pass-through columns of a plan under their original names, in order."""
    names = ["prompt_id", *(name for name in table.column_names if name.startswith(EXTRA))]
    return table.select(names).rename_columns(
        ["prompt_id", *(name.removeprefix(EXTRA) for name in names[1:])]
    )


def plan_fingerprint(table: pa.Table) -> str:
    """A digest of the values of a plan table, independent of the writer, as 32 hex characters."""
    named = table.select([name for name in table.column_names if name not in SOURCE])
    values = json.dumps(named.to_pydict(), ensure_ascii=True, sort_keys=True, default=str)
    return digest_of_bytes(values.encode())


def count_images(prompts: pa.Table, section: GenerateConfig) -> int:
    """The number of candidate images of planned prompts, of the first round if there are rounds."""
    images = pc.fill_null(prompts.column("images"), section.images)
    if section.until_accepted is not None:
        images = pc.min_element_wise(images, section.max_images)
    return int(pc.sum(images).as_py() or 0)


def count_most_images(prompts: pa.Table, section: GenerateConfig) -> int:
    """The number of candidate images that planned prompts have at most."""
    in_rounds = section.until_accepted is not None
    return prompts.num_rows * section.max_images if in_rounds else count_images(prompts, section)


def content_digest(text: str, overrides: Mapping[str, int | float | str]) -> str:
    """The id of a prompt that has none of its own: a digest as 16 hex characters.

    Args:
        text: normalised text of the prompt.
        overrides: the settings that the row overrides; those of type float must be `float`.
    """
    canonical = canonical_json(overrides) if overrides else "{}"
    return hashlib.blake2b(f"{text}\0{canonical}".encode(), digest_size=8).hexdigest()


# --- validation of rows --------------------------------------------------------------------------


def _validate_block(block: Block, table: str) -> PromptBlock:
    names = [name for name in OVERRIDES if name in block.values]
    settings = zip(*(block.values[name] for name in names), strict=True) if names else repeat(())
    texts, ids, languages = (block.values.get(name, repeat(None)) for name in KNOWN_COLUMNS[:3])
    rows: list[tuple[Any, ...]] = []
    accepted: list[int] = []
    table = block.part or table

    def row_of(number: int) -> TableRow:
        return TableRow(table, number - block.rows_before)

    rejects = {bad.number: _reject_unreadable(bad, row_of(bad.number)) for bad in block.bad}
    too_large = set(rows_larger_than(block.extras, MAX_EXTRA_BYTES))
    for position, (number, text, prompt_id, language, values) in enumerate(
        zip(block.numbers, texts, ids, languages, settings, strict=False)
    ):
        try:
            if position in too_large:
                detail = f"its other columns have more than {MAX_EXTRA_BYTES:,} bytes"
                raise RejectedError("bad_type", detail)
            given = zip(names, values, strict=True)
            rows.append(_plan_row(text, prompt_id, language, given, row_of(number)))
            accepted.append(position)
        except RejectedError as error:
            rejects[number] = _reject_row(
                error.reason, error.detail, row_of(number), prompt_id, text
            )
    return PromptBlock(
        prompts=_plan_table(rows, block.extras, accepted),
        numbers=[block.numbers[position] for position in accepted],
        rejects=[rejects[number] for number in sorted(rejects)],
        reject_numbers=sorted(rejects),
    )


def _plan_row(
    text: Any, prompt_id: Any, language: Any, settings: Iterable[tuple[str, Any]], row: TableRow
) -> tuple[Any, ...]:
    """The values of a row in the columns of a plan file."""
    normalised = prompt_text(text)
    overrides = overrides_of(settings)
    content = content_digest(normalised, overrides)
    return (
        content if prompt_id is None or is_missing(prompt_id) else checked_id(prompt_id),
        normalised,
        None if language is None or is_missing(language) else language_code(language),
        content,
        row.table,
        row.number,
        *(map(overrides.get, OVERRIDES) if overrides else NO_OVERRIDES),
    )


def _reject_unreadable(bad: BadRow, row: TableRow) -> RejectRecord:
    return _reject_row("bad_type", bad.detail, row, None, bad.text)


def _reject_row(
    reason: Reason, detail: str, row: TableRow, prompt_id: Any, text: Any
) -> RejectRecord:
    usable = isinstance(prompt_id, str) and PROMPT_ID.fullmatch(prompt_id)
    if isinstance(text, bytes):
        text = text[: 4 * REJECT_TEXT_LENGTH].decode(errors="replace")
    shown = text if text is None or isinstance(text, str) else shorten(text)
    if shown is not None:
        shown = shown[:REJECT_TEXT_LENGTH].encode(errors="replace").decode()
    known_id = prompt_id if usable else None
    return reject(reason, detail, stage=STAGE, prompt_id=known_id, text=shown, row=row)


def _plan_table(rows: list[tuple[Any, ...]], extras: pa.Table, accepted: list[int]) -> pa.Table:
    """A plan table of the rows; `accepted` are their positions in `extras`."""
    plan = plan_schema()
    columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * len(plan)
    arrays = [pa.array(column, item.type) for column, item in zip(columns, plan, strict=True)]
    if len(accepted) < extras.num_rows:
        extras = extras.take(pa.array(accepted, pa.int64()))
    others = [pa.field(EXTRA + item.name, item.type) for item in extras.schema]
    return pa.table([*arrays, *extras.columns], schema=pa.schema([*plan, *others]))


def reject_blocked(
    prompts: pa.Table, words: tuple[str, ...]
) -> tuple[pa.Table, list[RejectRecord]]:
    """The prompts without blocked words, and a reject for each of the others."""
    if not words:
        return prompts, []
    rows = prompts.select(["prompt_id", "text"]).to_pylist()
    causes = [find_blocked_word(words, row["text"]) for row in rows]
    rejects = [
        reject(*cause, stage=STAGE, row=source, **row)
        for row, cause, source in zip(rows, causes, sources_of(prompts), strict=True)
        if cause is not None
    ]
    return prompts.filter(pa.array([cause is None for cause in causes], pa.bool_())), rejects
