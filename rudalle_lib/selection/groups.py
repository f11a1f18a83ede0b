"""What prompts have in common: values of their own columns, and minimum scores by such values."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rudalle_lib.errors import ConfigError
from rudalle_lib.escaping import csv_text
from rudalle_lib.humanize import did_you_mean
from rudalle_lib.prompts.plan import read_extras
from rudalle_lib.schema.records import ShardSpec
from rudalle_lib.schema.tables import row_as_json
from rudalle_lib.selection.rules import Limit
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.filesystems import read_small
from rudalle_lib.storage.storage import Storage

MIN_SCORE = "min_score"
"""The column of a table of minimum scores that holds them."""

MAX_BYTES = 64_000_000
"""The largest table of minimum scores."""


@dataclass(frozen=True)
class MinScores:
    """A table of minimum scores.

    Attributes:
        name: of the table in errors.
        columns: of the prompt table, whose values it names.
        rows: values, "" for any, and the minimum score.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], float], ...]

    def limits(self, extras: pa.Table) -> dict[str, Limit]:
        """The minimum score of each prompt that has one, by prompt id.

        Args:
            extras: `prompt_id` and the pass-through columns of prompts.
        """
        found: dict[str, Limit] = {}
        values = [_texts(extras, name) for name in self.columns]
        by_values = {row: None for row in zip(*values, strict=True)}
        limits = {row: self._limit(row) for row in by_values}
        for prompt_id, row in zip(
            extras.column("prompt_id").to_pylist(), zip(*values, strict=True), strict=True
        ):
            limit = limits[row]
            if limit is not None:
                found[prompt_id] = limit
        return found

    def _limit(self, values: tuple[str | None, ...]) -> Limit | None:
        for wanted, min_score in self.rows:
            pairs = zip(wanted, values, strict=True)
            if all(one in ("", value) for one, value in pairs):
                named = zip(self.columns, wanted, strict=True)
                where = ", ".join(f"{name}={one}" for name, one in named if one)
                return Limit(min_score, where or "all prompts")
        return None


def value_text(value: Any) -> str | None:
    """A value of a column as the text that tables and groups know it by; None for null."""
    return value if value is None or isinstance(value, str) else row_as_json(value)


def group_values(extras: pa.Table, columns: Iterable[str]) -> dict[str, dict[str, str]]:
    """The values of prompts, by column and prompt id; a prompt without a value is absent."""
    prompt_ids = extras.column("prompt_id").to_pylist()
    return {
        name: {
            prompt_id: text
            for prompt_id, text in zip(prompt_ids, _texts(extras, name), strict=True)
            if text is not None
        }
        for name in columns
    }


def check_columns(wanted: Mapping[str, str], storage: Storage, shards: Sequence[ShardSpec]) -> None:
    """Check that the columns that rules name are columns of the prompt table.

    Args:
        wanted: by column, the key or the table that names it.
        storage: the output.
        shards: whose plan files exist; without any nothing is checked.

    Raises:
        ConfigError: no prompt of the plan has such a column.
    """
    missing, known = dict(wanted), dict[str, None]()
    for shard in shards:
        if not missing:
            return
        names = read_extras(storage, shard).column_names[1:]
        known |= dict.fromkeys(names)
        missing = {name: where for name, where in missing.items() if name not in known}
    if missing and shards:
        name, where = next(iter(missing.items()))
        columns = f"are {', '.join(sorted(known))}" if known else "do not exist"
        raise ConfigError(
            f"{where} names the column {name!r}, which no prompt has{did_you_mean(name, known)}; "
            f"the prompt table's own columns {columns}."
        )


def read_min_scores(url: str) -> MinScores:
    """Read a table of minimum scores.

    Args:
        url: of a CSV file, or of a Parquet file whose name ends with .parquet.

    Raises:
        ConfigError: it is no such table; the message names the row.
        StorageError: it cannot be read.
    """
    name = f"The table of minimum scores {public_url(url)}"
    content = read_small(url, "table of minimum scores", MAX_BYTES)
    read = _read_parquet if url.lower().endswith((".parquet", ".pq")) else _read_csv
    header, rows = read(content, name)
    if MIN_SCORE not in header or len(set(header)) < len(header):
        raise ConfigError(
            f"{name} has the columns {', '.join(header)[:300] or 'none'}: expected {MIN_SCORE} and "
            "columns of the prompt table, each once."
        )
    place = header.index(MIN_SCORE)
    columns = tuple(column for column in header if column != MIN_SCORE)
    parsed = []
    for number, row in rows:
        if len(row) != len(header):
            raise ConfigError(
                f"{name}, row {number}: expected {len(header)} values, found {len(row)}."
            )
        values = tuple(one for index, one in enumerate(row) if index != place)
        parsed.append((values, _min_score(row[place], name, number)))
    return MinScores(name, columns, tuple(parsed))


def _read_csv(content: bytes, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        text = content.decode("utf-8-sig")
        header = text.lstrip("\r\n").partition("\n")[0]
        delimiter = max(",;\t", key=header.count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        read = [[csv_text(cell.strip()) for cell in row] for row in lines if any(row)]
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not UTF-8 text; save it as CSV in UTF-8.") from None
    except csv.Error as error:
        raise ConfigError(f"{name} cannot be read as CSV: {error}.") from None
    return (read[0] if read else []), list(enumerate(read[1:], start=1))


def _read_parquet(content: bytes, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split()).rstrip(".")[:200]
        raise ConfigError(f"{name} cannot be read as Parquet: {why}.") from None
    columns = [[value_text(one) or "" for one in column.to_pylist()] for column in table.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return list(table.column_names), list(enumerate(rows, start=1))


def _min_score(text: str, name: str, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -1 <= value <= 1:
        raise ConfigError(
            f"{name}, row {number}: expected a {MIN_SCORE} from -1 to 1, found {text[:100]!r}."
        )
    return value


def _texts(extras: pa.Table, name: str) -> list[str | None]:
    if name not in extras.column_names[1:]:
        return [None] * extras.num_rows
    return [value_text(value) for value in extras.column(name).to_pylist()]
