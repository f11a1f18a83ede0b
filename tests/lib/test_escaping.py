"""Text of strangers cannot control a terminal, nor become markup, YAML or a formula."""

from __future__ import annotations

import csv
import html
import io
import pickle
import re
import unicodedata
from html.parser import HTMLParser

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rudalle_lib.errors import RudalleError, StorageError
from rudalle_lib.escaping import (
    csv_cell,
    csv_text,
    encodable,
    html_text,
    indented,
    markdown_code,
    markdown_text,
    safe_line,
    safe_text,
    yaml_text,
)

HOSTILE = (
    "\x1b]0;title\x07", "\x1b[2J\x1b[1;1H", "\x9b31m", "a\rb", "\u202eexe.png", "\u2066x\u2069",
    "\ufeff", "\ud800", "a|b", "a\\|b", "``", "`x`", "<script>alert(1)</script>", "<!--", "&lt;",
    "[x](javascript:y)", "![x](http://h/i.png)", "](", "# x", "- x", "1. x", "=== ", "---",
    "```\nx\n```", "a\n\n# b", "$$x$$", "<http://h>", "*b*", "__b__", "~~s~~", "\"' onload=x",
    "{{name}}", "\\", "\\\\", "a\\`b", "\u2028x",
)  # fmt: skip
"""One of each kind of text that has a meaning somewhere."""

ANY_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.text(st.sampled_from("\\`|<>[]()!*_#~-+=.1&;:'\"\n\r\t $\x1b\x00\u202e")),
    st.lists(st.sampled_from(HOSTILE)).map("".join),
)


def markdown(text: str) -> str:
    """HTML that a renderer of GitHub's tables makes of a text."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


class Elements(HTMLParser):
    """The names of all elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def plain(text: str) -> str:
    """What is shown of a text on one line."""
    return safe_text(" ".join(text.split()))


# --- terminals ---------------------------------------------------------------------------------


@given(ANY_TEXT)
def test_nothing_that_controls_a_terminal_passes(text: str) -> None:
    safe = safe_text(text)
    assert all(
        unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in safe if c not in "\n\t"
    )
    assert all(unicodedata.bidirectional(c) not in BIDI_CONTROLS for c in safe)
    assert safe_text(safe) == safe
    safe.encode()
    assert "\n" not in safe_line(text) and "\t" not in safe_line(text)


BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize("text", ["красный круг", "👩‍🎨 می‌خواهم", "a\tb\nc", "東京 €", "C:\\x1b"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert safe_text(text) == text


def test_a_control_character_is_shown_as_its_escape() -> None:
    assert safe_text("\x1b[31m\u202e\U000e0041\r") == r"\x1b[31m\u202e\U000e0041\x0d"
    assert indented("one\nrudalle-flows: two") == "one\n  rudalle-flows: two"


@given(ANY_TEXT, st.sampled_from(["ascii", "latin-1", "cp1251", "koi8-r", "utf-8", "utf-16"]))
def test_every_text_can_be_encoded_after_it_was_made_encodable(text: str, encoding: str) -> None:
    encodable(text, encoding).encode(encoding)


def test_an_encoding_that_has_the_text_keeps_it() -> None:
    assert encodable("круг …", "koi8-r") == "круг ..."
    assert encodable("круг", "ascii") == r"\u043a\u0440\u0443\u0433"


def test_messages_of_errors_are_safe_wherever_they_end() -> None:
    error = StorageError("There is no \x1b[2Jfile.")
    assert str(error) == r"There is no \x1b[2Jfile." and "\x1b" not in repr(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert RudalleError(3, "x").args == (3, "x")


# --- Markdown ----------------------------------------------------------------------------------


@given(ANY_TEXT)
def test_a_text_is_no_markup_in_a_heading_a_paragraph_and_a_table(text: str) -> None:
    safe = markdown_text(text)
    heading = Elements(markdown(f"# {safe}\n\nnext"))
    assert heading.names == ["h1", "p"]
    assert Elements(markdown(safe)).names == (["p"] if safe.strip() else [])
    assert shown(markdown(safe)) == plain(text).strip()
    check_table(safe, [], plain(text).strip())


@given(ANY_TEXT)
def test_code_stays_in_its_cell(text: str) -> None:
    check_table(markdown_code(text), ["code"], plain(text))


def check_table(cell: str, inside: list[str], text: str) -> None:
    page = markdown(f"| a | b |\n| :--- | :--- |\n| {cell} | second |\n| third | fourth |\n")
    elements = Elements(page)
    rows = ["thead", "tr", "th", "th", "tbody", "tr", "td", *inside, "td", "tr", "td", "td"]
    assert elements.names == ["table", *rows]
    found = re.search(r"<tbody>\s*<tr>\s*<td[^>]*>(.*?)</td>\s*<td[^>]*>second</td>", page, re.S)
    assert found and shown(found[1]) == text


def shown(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page)).strip("\n")


# --- HTML, YAML, CSV ---------------------------------------------------------------------------


@given(ANY_TEXT)
def test_a_text_is_no_element_and_leaves_no_attribute(text: str) -> None:
    elements = Elements(f'<p title="{html_text(text)}">{html_text(text)}</p><b></b>')
    assert elements.names == ["p", "b"]
    assert html.unescape(html_text(text)) == safe_text(text)


@given(ANY_TEXT)
def test_yaml_reads_the_text_back_and_holds_no_control_character(text: str) -> None:
    line = yaml_text(text)
    assert line.isprintable()
    known = text.encode("utf-8", "replace").decode()
    assert yaml.safe_load(f"a: {line}\nb:\n- {line}\n") == {"a": known, "b": [known]}


@given(ANY_TEXT)
def test_a_spreadsheet_sees_no_formula_and_the_text_comes_back(text: str) -> None:
    cell = csv_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert csv_text(cell) == text
    file = io.StringIO()
    csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow([cell])
    if "\0" not in cell:
        assert next(csv.reader(io.StringIO(file.getvalue(), newline=""))) == [cell]


@pytest.mark.parametrize("text", ["'quoted'", "it's", "a=b", "5-3", "'", ""])
def test_other_cells_are_not_changed(text: str) -> None:
    assert csv_cell(text) == text == csv_text(text)
