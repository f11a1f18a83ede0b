"""Decisions by hand: `curation.csv` in the output, a table of images to keep and to reject.

The gallery exports it, spreadsheets edit it, and a run follows it. Columns are `image_id`,
`decision` (keep or reject) and, if there is one, `note`; others are ignored.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

from rudalle_lib.dataset import layout
from rudalle_lib.errors import ConfigError
from rudalle_lib.escaping import csv_cell, csv_text
from rudalle_lib.schema.decisions import DECISIONS, KEEP, REJECT, ByHand
from rudalle_lib.storage.storage import Storage

COLUMNS = ("image_id", "decision", "note")
"""Columns of the table, in the order in which they are written."""

DELIMITERS = ",;\t"
"""What spreadsheets write between values."""

MAX_BYTES = 64_000_000
"""The largest table that is added: about a million decisions."""

MAX_NOTE = 500
"""Most characters of a note."""


@dataclass(frozen=True)
class Curation:
    """A table of decisions.

    Attributes:
        decisions: by image id, in the order of the table.
        lines: the line of each decision, by image id; the header is line 1.
        name: of the table in errors.
        digest: SHA-256 of the file; empty if there is none.
    """

    decisions: Mapping[str, ByHand] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
    name: str = layout.CURATION
    digest: str = ""

    def error(self, image_id: str, what: str) -> ConfigError:
        """An error about the row of an image."""
        return _error(self.name, self.lines.get(image_id, 0), what)


def read_curation(storage: Storage) -> Curation:
    """The decisions in an output; none if it has no `curation.csv`.

    Raises:
        ConfigError: the table cannot be read; the message names the line.
    """
    content = storage.read_bytes_if_any(layout.CURATION)
    if content is None:
        return Curation()
    return parse_curation(content, storage.public_path(layout.CURATION))


def curation_digest(storage: Storage) -> str:
    """SHA-256 of the `curation.csv` of an output; empty if it has none."""
    content = storage.read_bytes_if_any(layout.CURATION)
    return "" if content is None else hashlib.sha256(content).hexdigest()


def parse_curation(content: bytes, name: str) -> Curation:
    """Read a table of decisions.

    Args:
        content: of the file, CSV in UTF-8 with commas, semicolons or tabs.
        name: of the file in errors.

    Raises:
        ConfigError: it is no such table, or decides differently about one image.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _error(name, line, "it is not UTF-8 text; save it as CSV in UTF-8") from None
    decisions: dict[str, ByHand] = {}
    lines: dict[str, int] = {}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    places: dict[str, int] | None = None
    line = 1
    try:
        for row in reader:
            if places is None:
                places = _places(row, name)
            elif any(cell.strip() for cell in row):
                image_id, by_hand = _read_row(row, places, name, line)
                before = decisions.get(image_id)
                if before is not None and before.decision != by_hand.decision:
                    raise _error(
                        name,
                        line,
                        f"{image_id} is decided twice: {before.decision} in line "
                        f"{lines[image_id]}, {by_hand.decision} here; remove one of the two rows",
                    )
                if before is None or not before.note:
                    decisions[image_id] = by_hand
                    lines.setdefault(image_id, line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise _error(name, line, f"it cannot be read as CSV: {error}") from None
    if places is None:
        _places([], name)
    return Curation(decisions, lines, name, hashlib.sha256(content).hexdigest())


def render_curation(decisions: Mapping[str, ByHand]) -> bytes:
    """The table of decisions as CSV, ordered by image id."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for image_id, (decision, note) in sorted(decisions.items()):
        writer.writerow([csv_cell(image_id), decision, csv_cell(note)])
    return stream.getvalue().encode()


def _delimiter(text: str) -> str:
    header = text.lstrip("\r\n").partition("\n")[0]
    return max(DELIMITERS, key=header.count)


def _places(header: list[str], name: str) -> dict[str, int]:
    """Where the columns are."""
    found = [csv_text(cell).strip().lower() for cell in header]
    for column in COLUMNS[:2]:
        if column not in found:
            names = ", ".join(found) if any(found) else "no names"
            what = f"expected the columns {', '.join(COLUMNS)} in the header, found {names[:300]}"
            raise _error(name, 1, what)
    if repeated := [column for column in COLUMNS if found.count(column) > 1]:
        raise _error(name, 1, f"the header names the column {repeated[0]} twice")
    return {column: found.index(column) for column in COLUMNS if column in found}


def _read_row(
    row: list[str], places: Mapping[str, int], name: str, line: int
) -> tuple[str, ByHand]:
    cells = {
        column: csv_text(row[place].strip()) if place < len(row) else ""
        for column, place in places.items()
    }
    image_id, decision = cells["image_id"], cells["decision"].lower()
    if not image_id:
        raise _error(name, line, "there is no image_id")
    if decision not in DECISIONS:
        what = f"the decision about {image_id[:100]} is {cells['decision'][:100]!r}"
        raise _error(name, line, f"{what}; expected {' or '.join(DECISIONS)}")
    note = cells.get("note", "")
    if len(note) > MAX_NOTE:
        what = f"the note about {image_id[:100]} has {len(note):,} characters"
        raise _error(name, line, f"{what}; expected at most {MAX_NOTE}")
    return image_id, ByHand(KEEP if decision == KEEP else REJECT, note)


def _error(name: str, line: int, what: str) -> ConfigError:
    return ConfigError(f"{name}, line {line}: {what}.")
