"""CSV as people have it: any delimiter, columns without names, quotes that are missing."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.errors import PromptError
from rudalle_lib.escaping import csv_cell
from rudalle_lib.prompts.csv_reader import MAX_ROW_LINES
from rudalle_lib.prompts.rows import read_prompts
from rudalle_lib.schema.records import Overrides, Prompt, RejectRecord
from tests.support.prompt_tables import read_accepted


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "p.csv"


def read(table: Path, text: str | bytes, **options: str) -> list[Prompt | RejectRecord]:
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_prompts(str(table), **options))  # type: ignore[arg-type]


def accepted(table: Path, text: str, **options: str) -> list[Prompt]:
    table.write_text(text, encoding="utf-8", newline="")
    return read_accepted(str(table), **options)


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "row", "extra"),
    [
        (",prompt,theme", "0,a,x", {"column_1": "0", "theme": "x"}),
        ("prompt,,theme", "a,0,x", {"column_2": "0", "theme": "x"}),
        (" ,prompt,", "0,a,x", {"column_1": "0", "column_3": "x"}),
        ("column_2,,prompt", "x,y,a", {"column_2": "x", "column_2_": "y"}),
        ("prompt, theme ,\ttag", "a,x,y", {"theme": "x", "tag": "y"}),
        ("\ufeffprompt,theme\u200b", "a,x", {"theme": "x"}),
        ('"prompt" , "theme"', "a,x", {"theme": "x"}),
    ],
)
def test_every_column_keeps_its_values(
    table: Path, header: str, row: str, extra: dict[str, str]
) -> None:
    (prompt,) = accepted(table, f"{header}\n{row}\n")
    assert (prompt.text, prompt.extra) == ("a", extra)


def test_blanks_after_delimiters_lose_no_override(table: Path) -> None:
    (prompt,) = accepted(table, 'prompt, seed, images, note\na, 7, 2, "b, c"\n')
    assert prompt.overrides == Overrides(seed=7, images=2)
    assert prompt.extra == {"note": "b, c"}
    mapped = accepted(table, "caption , sd\na, 7\n", columns={"prompt": "caption", "seed": " sd"})  # type: ignore[arg-type]
    assert mapped[0].overrides == Overrides(seed=7)


def _short(row: Prompt | RejectRecord) -> str:
    return row.text if isinstance(row, Prompt) else row.detail.partition(": ")[2]


def test_delimiters_at_the_end_of_lines_are_no_values(table: Path) -> None:
    rows = read(table, "prompt,theme\na,x,,,\nb,y\nc,z,more\nd\n")
    assert [_short(row) for row in rows] == [
        "a", "b", "expected 2 values, found 3", "expected 2 values, found 1"
    ]  # fmt: skip
    rows = accepted(table, "prompt,theme,,\na,x,,\nb,y\nc,z,more,\n")  # type: ignore[assignment]
    assert [dict(row.extra) for row in rows] == [  # type: ignore[union-attr]
        {"theme": "x", "column_3": ""},
        {"theme": "y", "column_3": ""},
        {"theme": "z", "column_3": "more"},
    ]


def test_empty_columns_without_name_are_no_columns(table: Path) -> None:
    assert accepted(table, "prompt,theme,\na,x,\nb,y\n")[0].extra == {"theme": "x"}


@pytest.mark.parametrize("header", ["prompt,a,a", "prompt,a, a", "prompt,prompt"])
def test_a_repeated_name_is_an_error(table: Path, header: str) -> None:
    with pytest.raises(PromptError, match="two columns named '(a|prompt)'"):
        read(table, header + "\n1,2,3\n")


def test_a_name_that_cannot_be_used_is_an_error(table: Path) -> None:
    with pytest.raises(PromptError, match="a column whose name has more than 256 characters"):
        read(table, "prompt," + "x" * 300 + "\na,b\n")
    with pytest.raises(PromptError, match=r"whose name is not valid UTF-8 text \(see prompts.enc"):
        read(table, b"prompt,\xff\xfe\xfd\na,b\n")


def test_empty_lines_are_no_rows(table: Path) -> None:
    assert [row.text for row in accepted(table, "\n\nprompt\n\na\n\n\nb\n\n")] == ["a", "b"]
    assert read(table, "prompt\n" + "\n" * 30_000) == []


# --- delimiters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delimiter", "shown"), [(";", "';'"), ("\t", "tabs"), ("|", "'|'"), (",", None)]
)
def test_the_delimiter_is_recognised_with_a_warning(
    table: Path, delimiter: str, shown: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        rows = accepted(table, f"prompt{delimiter}theme\nкруг{delimiter}a\n")
    assert (rows[0].text, rows[0].extra) == ("круг", {"theme": "a"})
    messages = [record.message for record in caplog.records]
    if shown is None:
        assert messages == []
    else:
        (message,) = messages
        assert f"is read with {shown} between" in message and "prompts.delimiter" in message


def test_commas_in_texts_do_not_hide_the_delimiter(table: Path) -> None:
    rows = accepted(table, "prompt;note\na, b, c;x\nd;y\n")
    assert [row.text for row in rows] == ["a, b, c", "d"]


def test_a_given_delimiter_is_used(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = accepted(table, "prompt:note\na,b:x\n", delimiter=":")
    assert (rows[0].text, rows[0].extra) == ("a,b", {"note": "x"})
    assert caplog.records == []
    with pytest.raises(PromptError, match="has no column 'prompt'; its columns are 'prompt;note'"):
        read(table, "prompt;note\na;b\n", delimiter=",")


def test_excels_line_of_the_delimiter_is_read(table: Path) -> None:
    assert accepted(table, "sep=;\r\nprompt;note\r\na;b\r\n")[0].extra == {"note": "b"}


# --- quotes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", ["plain", "quoted", "mixed", "quoted start"])
@pytest.mark.parametrize("broken", [0, 1, 2_500, 4_990, 4_999])
def test_a_missing_quote_rejects_one_row_of_five_thousand(
    table: Path, others: str, broken: int
) -> None:
    def row(number: int) -> str:
        text = f"text {number}"
        if others == "quoted" or (others == "mixed" and number % 7 == 0):
            text = f'"{text}, more"'
        return f'"{number}",{text},ru' if others == "quoted start" else f"{number},{text},ru"

    lines = [row(number) for number in range(5_000)]
    lines[broken] = f'{broken},"text {broken},ru'
    rows = read(table, "n,prompt,lang\n" + "\n".join(lines) + "\n")
    assert len(rows) == 5_000
    (bad,) = (item for item in rows if isinstance(item, RejectRecord))
    assert f"row {broken + 1} of" in bad.detail
    assert f"line {broken + 2} cannot be read as CSV: a quote in it is" in bad.detail
    assert bad.text == lines[broken]


def test_every_missing_quote_is_named(table: Path) -> None:
    lines = [f'"text {n}",x' if n % 100 else f'"text {n},x' for n in range(1, 1001)]
    rows = read(table, "prompt,y\n" + "\n".join(lines) + "\n")
    bad = [row for row in rows if isinstance(row, RejectRecord)]
    assert len(rows) == 1000 and len(bad) == 10
    assert [int(row.detail.split("line ")[1].split()[0]) for row in bad] == [
        n + 1 for n in range(100, 1001, 100)
    ]


def test_texts_of_many_lines_are_read(table: Path) -> None:
    poem = "\n".join(f"line {n}" for n in range(MAX_ROW_LINES - 1))
    rows = accepted(table, f'prompt,note\n"{poem}",x\nb,"1\n2"\n')
    assert [row.text for row in rows] == [poem.replace("\n", " "), "b"]
    assert rows[1].extra == {"note": "1\n2"}


def test_a_row_of_several_lines_with_a_missing_delimiter_names_its_lines(table: Path) -> None:
    first, second = read(table, 'prompt,note\n"a\nb",c,d\ne,f\n')
    assert isinstance(first, RejectRecord) and isinstance(second, Prompt)
    assert "expected 2 values, found 3; it consists of the lines 2 to 3" in first.detail


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (r'"say \"hi\", then go",x', "escaped by backslashes"),
        ('"' + "x" * 200_000 + '",x', "more than 131,072 characters"),
        ("a\rb,x", "a carriage return outside quotes"),
    ],
)
def test_a_line_that_is_no_row_is_rejected_alone(table: Path, line: str, problem: str) -> None:
    rows = read(table, f"prompt,note\na,1\n{line}\nb,2\n")
    assert [row.text for row in rows if isinstance(row, Prompt)] == ["a", "b"]
    (bad,) = (row for row in rows if isinstance(row, RejectRecord))
    assert problem in bad.detail


TEXT = st.text(st.sampled_from('ab,"\n\r; ё'), max_size=6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_what_python_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([("prompt", "note"), *((f"p {text}", note) for text, note in rows)])
    path = tmp_path_factory.mktemp("csv") / "p.csv"
    found = read(path, buffer.getvalue())
    notes = [row.extra["note"] for row in found if isinstance(row, Prompt)]
    assert notes == [note for _, note in rows]


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from('ab,"\n\r;\\ '), max_size=60))
def test_no_line_vanishes(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Every word of a table is in an accepted row, or in a line that a reject names."""
    marked = "".join(f"m{n}" if letter == "a" else letter for n, letter in enumerate(text))
    path = tmp_path_factory.mktemp("csv") / "p.csv"
    rows = read(path, f"prompt,note\n{marked}\n")
    if any(getattr(row, "reason", "") == "empty_prompt" for row in rows):
        return  # such a reject shows only its prompt
    shown = " ".join(f"{r.text} {getattr(r, 'extra', '')} {getattr(r, 'detail', '')}" for r in rows)
    for number, letter in enumerate(text):
        assert letter != "a" or f"m{number}" in shown or "lines" in shown, shown


# --- our own exports -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["=1+1", "@круг", "+7", "-x", "'=x", "it's", "'quoted'"])
def test_cells_that_an_export_has_escaped_are_the_same_texts(table: Path, text: str) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerows([["prompt", "theme"], [csv_cell(text), csv_cell(text)]])
    (prompt,) = accepted(table, stream.getvalue())
    assert (prompt.text, prompt.extra) == (text, {"theme": text})
