"""Tables of decisions by hand: read as spreadsheets write them, or refused with the line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.dataset.curation import parse_curation, read_curation, render_curation
from rudalle_lib.errors import ConfigError
from rudalle_lib.schema.decisions import ByHand
from rudalle_lib.storage.storage import Storage

GOOD = "image_id,decision,note\na-000,keep,\na-001,reject,two squares\n"
EXPECTED = {"a-000": ByHand("keep"), "a-001": ByHand("reject", "two squares")}


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD + "\n,,\n",
        GOOD.replace("keep", " KEEP "),
        GOOD.replace("image_id", "Image_ID"),
        "note,prompt_id,decision,image_id\n,a,keep,a-000\ntwo squares,a,reject,a-001\n",
        GOOD + "a-000,keep,\n",
    ],
)
def test_tables_are_read_as_spreadsheets_write_them(text: str) -> None:
    found = parse_curation(text.encode(), "c.csv")
    assert dict(found.decisions) == EXPECTED
    assert len(found.digest) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the columns image_id, decision, note in the header, found no names"),
        ("id,decision\n", "line 1: expected the columns .*, found id, decision"),
        ("image_id,decision,decision\n", "line 1: the header names the column decision twice"),
        (GOOD + "a-002,maybe,\n", "line 4: the decision about a-002 is 'maybe'; expected keep or"),
        (GOOD + "a-002\n", "line 4: the decision about a-002 is ''; expected keep or reject"),
        (GOOD + ",keep,\n", "line 4: there is no image_id"),
        (GOOD + "a-001,keep,\n", "line 4: a-001 is decided twice: reject in line 3, keep here"),
        (GOOD + 'a-002,keep,"no end\n', "line 4: it cannot be read as CSV"),
        (GOOD + "a-002,keep," + "n" * 501, "line 4: the note about a-002 has 501 characters"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^c.csv, {message}") as raised:
        parse_curation(text.encode(), "c.csv")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_text_is_one_sentence_with_the_line() -> None:
    with pytest.raises(ConfigError, match="line 3: it is not UTF-8 text; save it as CSV in UTF-8"):
        parse_curation(GOOD.encode()[:-14] + "две фигуры".encode("cp1251"), "c.csv")
    with pytest.raises(ConfigError, match=r"^c.csv, line 1: "):
        parse_curation(b"PAR1\x00\x15\x04", "c.csv")


IDS = st.text("abz019._-", min_size=1, max_size=8)
NOTES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map(str.strip)
DECISIONS = st.builds(ByHand, st.sampled_from(["keep", "reject"]), NOTES)


@settings(deadline=None)
@given(st.dictionaries(IDS, DECISIONS))
def test_what_is_written_is_read_again(decisions: dict[str, ByHand]) -> None:
    content = render_curation(decisions)
    assert dict(parse_curation(content, "c.csv").decisions) == decisions
    assert render_curation(dict(reversed(decisions.items()))) == content


def test_an_output_without_a_table_has_no_decisions(storage: Storage) -> None:
    storage.write_bytes("plan/x", b"")
    assert not read_curation(storage).decisions
    storage.write_bytes("curation.csv", GOOD.encode())
    assert dict(read_curation(storage).decisions) == EXPECTED
