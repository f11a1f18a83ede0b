"""The prompt table: rows in, prompts and rejects out, streamed and never all in memory.

A row that cannot be used becomes a `RejectRecord` with a reason; only a table that cannot be read
at all is an error. `read_prompt_blocks` gives the prompts as Arrow tables in the columns of a plan
file, for bulk work; `read_prompts` gives them one by one.
"""

from __future__ import annotations

import hashlib
import heapq
import importlib.resources
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa

from rudalle_lib.borders import Borders
from rudalle_lib.config import DEMO_PROMPTS, MAX_SIDE
from rudalle_lib.digests import canonical_json
from rudalle_lib.errors import PromptError
from rudalle_lib.file_systems import open_input
from rudalle_lib.prompt_tables import BadRow, Block, Columns, read_blocks
from rudalle_lib.record_tables import schema
from rudalle_lib.records import (
    REJECT_TEXT_LENGTH,
    Overrides,
    PlannedPrompt,
    Prompt,
    Reason,
    RejectRecord,
    reject,
)
from rudalle_lib.storage_errors import clear_errors, public_url

#: The stage that rejects of the prompt table name.
STAGE = "plan"

#: Prefix of pass-through columns in a plan file.
EXTRA = "extra."

#: A longer text, in characters, is no prompt.
MAX_TEXT = 10_000

PROMPT_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
LANGUAGE = re.compile(r"[a-z]{2,3}")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")

#: The columns of `Overrides`, in order.
OVERRIDES = tuple(schema(Overrides).names)
NO_OVERRIDES = (None,) * len(OVERRIDES)

#: Our columns, the required one first.
KNOWN_COLUMNS = ("prompt", "prompt_id", "lang", *OVERRIDES)

#: A longer URI, in characters, is none.
MAX_URI = 2_000


@dataclass(frozen=True, slots=True)
class Range:
    """The values that an override may have; `above` excludes the lower bound itself."""

    kind: type[int] | type[float]
    low: float
    high: float
    above: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.kind is int else "a number"
        if self.above:
            return f"{kind} above {self.low} and at most {self.high}"
        return f"{kind} from {self.low} to {self.high}"


RANGES: Mapping[str, Range] = {
    "images": Range(int, 1, 1000),
    "seed": Range(int, 0, 2**63 - 1),
    "temperature": Range(float, 0, 100, above=True),
    "top_k": Range(int, 0, 2**31 - 1),
    "top_p": Range(float, 0, 1, above=True),
    "guidance": Range(float, 0, 100),
    "width": Range(int, 1, MAX_SIDE),
    "height": Range(int, 1, MAX_SIDE),
}


@dataclass(frozen=True, slots=True)
class PromptBlock:
    """Some consecutive rows of a table.

    `prompts` has the columns of `plan_schema()` and then `extra.<name>`; `numbers` and
    `reject_numbers` are the rows' numbers in the table, from 1, ascending.
    """

    prompts: pa.Table
    numbers: Sequence[int]
    rejects: Sequence[RejectRecord]
    reject_numbers: Sequence[int]


def plan_schema() -> pa.Schema:
    """The columns of a plan file, before the pass-through columns."""
    return pa.schema([*schema(PlannedPrompt), *schema(Overrides)])


def read_prompts(
    uri: str, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> Iterator[Prompt | RejectRecord]:
    """The rows of a prompt table in order, each as a prompt or as a reject.

    `uri` is a path or fsspec URL of Parquet, CSV or JSONL, or `demo://prompts`; `columns` maps our
    names to the table's; `limit` stops after that many rows. Equal prompts are not merged here.
    Raises `PromptError` or `StorageError`, in one sentence, where the table cannot be read.
    """
    for block in read_prompt_blocks(uri, columns, limit):
        prompts = zip(block.numbers, prompts_of(block.prompts), strict=True)
        rejects = zip(block.reject_numbers, block.rejects, strict=True)
        rows: Iterator[tuple[int, Prompt | RejectRecord]]
        rows = heapq.merge(prompts, rejects, key=lambda item: item[0])
        yield from (row for _, row in rows)


def read_prompt_blocks(
    uri: str, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> Iterator[PromptBlock]:
    """As `read_prompts`, some thousand rows at a time."""
    url = resolve(uri)
    name = public_url(url)

    def match(names: Sequence[str]) -> Columns:
        return Columns.match(names, KNOWN_COLUMNS, columns or {}, f"The prompt table {name}")

    with (
        clear_errors("read the prompt table", url),
        open_input(url, what="prompt table") as stream,
    ):
        for block in _first_rows(read_blocks(stream, name, match), limit):
            yield _judge(block, name)


def resolve(uri: str) -> str:
    """The path or URL behind `demo://prompts`; any other URI stands for itself."""
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
    """The rows of a table in the columns of a plan file as prompts."""
    # A plan file of an older version may lack the columns that came later.
    none = pa.nulls(table.num_rows)
    settings = (table.column(n) if n in table.column_names else none for n in OVERRIDES)
    overrides = zip(*(column.to_pylist() for column in settings), strict=True)
    extras = table.select([name for name in table.column_names if name.startswith(EXTRA)])
    extras = extras.rename_columns([name.removeprefix(EXTRA) for name in extras.column_names])
    rows = extras.to_pylist() if extras.num_columns else [{} for _ in range(table.num_rows)]
    ours = (table.column(name).to_pylist() for name in ("prompt_id", "text", "lang"))
    return [
        Prompt(prompt_id, text, lang, None, Overrides(*values), extra)
        for prompt_id, text, lang, values, extra in zip(*ours, overrides, rows, strict=True)
    ]


def normalise(text: str) -> str:
    """NFC, without control characters, every run of white space one blank, none at the ends."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = " ".join(text.split())
    if text.isprintable():
        return text
    plain = (" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    return " ".join("".join(plain).split())


def content_digest(text: str, overrides: Mapping[str, int | float | str]) -> str:
    """16 hex characters of a normalised text and its given overrides: the id of a prompt.

    Overrides whose type is a real number must be given as `float`.
    """
    canonical = canonical_json(overrides) if overrides else "{}"
    return hashlib.blake2b(f"{text}\0{canonical}".encode(), digest_size=8).hexdigest()


# --- judging rows ------------------------------------------------------------------------------


class _Refused(Exception):
    """A row that becomes a reject."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail


def _judge(block: Block, table: str) -> PromptBlock:
    given = [name for name in OVERRIDES if name in block.values]
    settings = zip(*(block.values[name] for name in given), strict=True) if given else repeat(())
    texts, ids, languages = (block.values.get(name, repeat(None)) for name in KNOWN_COLUMNS[:3])
    rows: list[tuple[Any, ...]] = []
    kept: list[int] = []
    rejects = {bad.number: _bad_row(bad, table) for bad in block.bad}
    for position, (number, text, prompt_id, language, values) in enumerate(
        zip(block.numbers, texts, ids, languages, settings, strict=False)
    ):
        try:
            rows.append(_accept(text, prompt_id, language, zip(given, values, strict=True)))
            kept.append(position)
        except _Refused as refused:
            detail = f"row {number} of {table}: {refused.detail}"
            rejects[number] = _reject(refused.reason, detail, prompt_id, text)
    return PromptBlock(
        prompts=_table(rows, block.extras, kept),
        numbers=[block.numbers[position] for position in kept],
        rejects=[rejects[number] for number in sorted(rejects)],
        reject_numbers=sorted(rejects),
    )


def _accept(
    text: Any, prompt_id: Any, language: Any, settings: Iterable[tuple[str, Any]]
) -> tuple[Any, ...]:
    """The columns of a plan file for one row."""
    plain = _text(text)
    overrides = _overrides(settings)
    content = content_digest(plain, overrides)
    return (
        content if prompt_id is None or prompt_id == "" else _prompt_id(prompt_id),
        plain,
        None if language is None or language == "" else _language(language),
        content,
        *(map(overrides.get, OVERRIDES) if overrides else NO_OVERRIDES),
    )


def _text(value: Any) -> str:
    if value is None:
        raise _Refused("empty_prompt", "expected a prompt, found nothing")
    if isinstance(value, bytes):
        raise _Refused("bad_type", "the prompt is not valid UTF-8 text")
    if not isinstance(value, str):
        raise _Refused("bad_type", f"expected a text as prompt, found {type(value).__name__}")
    if len(value) > MAX_TEXT:
        detail = f"the prompt has {len(value):,} characters; expected at most {MAX_TEXT:,}"
        raise _Refused("too_long", detail)
    plain = normalise(value)
    if not plain:
        raise _Refused("empty_prompt", "the prompt holds only white space")
    if not plain.isascii() and LONE_SURROGATE.search(plain):
        raise _Refused("bad_type", "the prompt is not valid UTF-8 text")
    return plain


def _prompt_id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and PROMPT_ID.fullmatch(value):
        return value
    raise _Refused(
        "bad_prompt_id",
        "expected at most 64 letters, digits, '_', '-' and '.', not beginning with '-' or '.', "
        f"found {_shown(value)}",
    )


def _language(value: Any) -> str:
    if isinstance(value, str):
        code = re.split("[-_]", value.strip().lower())[0]
        if LANGUAGE.fullmatch(code):
            return code
    raise _Refused("bad_type", f"expected a language code such as ru or en, found {_shown(value)}")


def _overrides(settings: Iterable[tuple[str, Any]]) -> dict[str, int | float | str]:
    """The given overrides; nothing, an empty text and NaN count as not given."""
    overrides: dict[str, int | float | str] = {}
    for name, value in settings:
        if value is None or value == "" or value != value:
            continue
        if name in RANGES:
            number = _number(value, RANGES[name])
            if number is None:
                detail = f"{name} must be {RANGES[name]}, found {_shown(value)}"
                raise _Refused("bad_override", detail)
            overrides[name] = number
        else:
            overrides[name] = _picture(value) if name == "image_prompt" else _borders(value)
    if ("image_prompt" in overrides) != ("image_prompt_borders" in overrides):
        detail = "image_prompt and image_prompt_borders belong together, found only one of them"
        raise _Refused("bad_image_prompt", detail)
    return overrides


def _picture(value: Any) -> str:
    """The URI of a picture."""
    if not isinstance(value, str) or len(value) > MAX_URI or not value.strip().isprintable():
        detail = f"image_prompt must be a path or URL of a picture, found {_shown(value)}"
        raise _Refused("bad_image_prompt", detail)
    uri = value.strip()
    if "://" in uri and "@" in uri.partition("://")[2].partition("/")[0]:
        detail = "image_prompt must not carry a user name or password"
        raise _Refused("bad_image_prompt", detail)
    return uri


def _borders(value: Any) -> str:
    """Borders in their canonical spelling."""
    try:
        return str(Borders.parse(value))
    except ValueError as error:
        raise _Refused("bad_image_prompt", f"image_prompt_borders: {error}") from None


def _number(value: Any, allowed: Range) -> int | float | None:
    """The value as a number of the allowed kind within its range, None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        if isinstance(value, str):  # "8.0" too: a column with gaps becomes real numbers on its way
            value = int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
        number = allowed.kind(value)
    except (ValueError, OverflowError):
        return None
    if number != value:
        return None
    inside = allowed.low <= number <= allowed.high and not (allowed.above and number == allowed.low)
    return number if inside else None


def _bad_row(bad: BadRow, table: str) -> RejectRecord:
    return _reject("bad_type", f"row {bad.number} of {table}: {bad.detail}", None, bad.text)


def _reject(reason: Reason, detail: str, prompt_id: Any, text: Any) -> RejectRecord:
    usable = isinstance(prompt_id, str) and PROMPT_ID.fullmatch(prompt_id)
    if isinstance(text, bytes):
        text = text[: 4 * REJECT_TEXT_LENGTH].decode(errors="replace")
    shown = text if text is None or isinstance(text, str) else _shown(text)
    if shown is not None:
        shown = shown[:REJECT_TEXT_LENGTH].encode(errors="replace").decode()
    return reject(reason, detail, stage=STAGE, prompt_id=prompt_id if usable else None, text=shown)


def _shown(value: Any) -> str:
    shown = repr(value).encode(errors="replace").decode()
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _table(rows: list[tuple[Any, ...]], extras: pa.Table, kept: list[int]) -> pa.Table:
    ours = plan_schema()
    columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * len(ours)
    table = pa.table(
        [pa.array(column, item.type) for column, item in zip(columns, ours, strict=True)],
        schema=ours,
    )
    if len(kept) < extras.num_rows:
        extras = extras.take(pa.array(kept, pa.int64()))
    for item, column in zip(extras.schema, extras.columns, strict=True):
        table = table.append_column(pa.field(EXTRA + item.name, item.type), column)
    return table


def _first_rows(blocks: Iterator[Block], limit: int | None) -> Iterator[Block]:
    """The blocks up to `limit` rows, bad ones counted too."""
    left = limit
    for block in blocks:
        numbers = sorted([*block.numbers, *(bad.number for bad in block.bad)])
        if left is None or len(numbers) < left:
            yield block
            left = None if left is None else left - len(numbers)
            continue
        if left > 0:
            yield _up_to(block, numbers[left - 1])
        return


def _up_to(block: Block, last: int) -> Block:
    count = sum(number <= last for number in block.numbers)
    return Block(
        numbers=block.numbers[:count],
        values={name: values[:count] for name, values in block.values.items()},
        extras=block.extras.slice(0, count),
        bad=[bad for bad in block.bad if bad.number <= last],
    )
