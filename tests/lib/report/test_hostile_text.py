"""Names, reasons and columns of strangers are text in every file that a report writes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from prometheus_client.parser import text_string_to_metric_families

from rudalle_lib.escaping import safe_text
from rudalle_lib.report.dataset_card import CardModel, render_dataset_card, render_rejects
from rudalle_lib.report.gallery_page import Entry, Gallery, render_chunk, render_gallery
from rudalle_lib.report.prometheus import prometheus_text
from rudalle_lib.schema.records import RunManifest, RunTotals, RunUsage
from tests.support.gallery_pages import chunk_rows, page_data

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.text(st.sampled_from("\\`|<>[]()!*_#~-+=.1&;:'\"{}\n\r\t $\x1b\x9b\u202e\ud800x")),
    st.sampled_from(
        ["</script><script>window.harmed=1</script>", "<!--", "]]>", "a|b\n| c |", "{{kept}}",
         "\n---\nlicense: other\n---\n", "```\n# x", "__proto__", "constructor", "no", "null"]
    ),
)  # fmt: skip


class Elements(HTMLParser):
    """The names of the elements of a page, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)


def run_of(name: str, reason: str = "duplicate", version: str = "1") -> RunManifest:
    totals = RunTotals(1, 2, 3, 4, {reason: 1}, {"generate": 1.0}, 5, {})
    usage = RunUsage(60.0, 8.5, 2, 0.25, 0.02, None, None)
    return RunManifest(
        name, {"seed": 7}, "d", {}, {"v" + version: version}, 3, totals, "start", "end", {}, usage
    )


def card_of(text: str) -> str:
    columns = pa.schema(
        [pa.field(text, pa.string()), pa.field("s", pa.struct([pa.field(text, pa.int8())]))]
    )
    models = [CardModel("generate", text, text, text)]
    return render_dataset_card(run_of(text, text, text), models, [text], columns)


def elements_of(card: str) -> list[str]:
    _, _, body = card.removeprefix("---\n").partition("\n---\n")
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body)
    return [name for name in Elements(page).names if name != "code"]


ORDINARY = elements_of(card_of("word"))


@given(TEXT)
@settings(deadline=None)
def test_a_dataset_card_has_the_same_structure_whatever_the_names(text: str) -> None:
    try:
        card = card_of(text)
    except UnicodeEncodeError:  # Arrow has no such column names
        card = card_of(text.encode("utf-8", "replace").decode())
    assert elements_of(card) == ORDINARY
    assert CONTROL.search(card) is None
    assert card.encode()
    front = yaml.safe_load(card.split("\n---\n")[0])
    assert set(front) == {
        *("pretty_name", "task_categories", "language", "tags"),
        *("size_categories", "configs", "dataset_info"),
    }
    image, named, nested = front["dataset_info"]["features"]
    assert image["dtype"] == "image" and named["dtype"] == "string"
    assert list(nested) == ["name", "struct"] and len(nested["struct"]) == 1
    assert isinstance(front["pretty_name"], str)
    assert [type(code) for code in front["language"]] == [str]


@pytest.mark.parametrize("code", ["no", "null", "1e3", "[x]"])
def test_a_language_is_a_text_in_the_front_matter(code: str) -> None:
    """Norwegian is not false: https://hitchdev.com/strictyaml/why/implicit-typing-removed/."""
    card = render_dataset_card(run_of("x"), [], [code], pa.schema([]))
    assert yaml.safe_load(card.split("\n---\n")[0])["language"] == [code]


@given(TEXT)
def test_reasons_stay_in_their_rows(text: str) -> None:
    page = MarkdownIt("commonmark").enable("table").render(render_rejects({text: 1}))
    cells = [name for name in Elements(page).names if name in ("th", "td")]
    assert cells == ["th", "th", "td", "td"]


@given(TEXT, TEXT)
def test_metrics_are_read_back_with_their_labels(name: str, reason: str) -> None:
    text = prometheus_text(name, 4, run_of(name, reason))
    assert CONTROL.search(text) is None and text.encode()
    found = {
        family.name: sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    labels = {"run": safe_text(name), "reason": safe_text(reason)}
    assert found["rudalle_flows_rejected"] == labels
    assert "rudalle_flows_last_run_timestamp_seconds" not in found  # it ended at "end"


def gallery_of(text: str) -> str:
    entry = Entry(text, text, text, text, text, text, 0.5, 1, text, text, {text: text})
    return render_gallery(Gallery(text, [(text, text)], [text], {text: 1}, text, [text], [entry]))


GALLERY = Elements(gallery_of("word")).names


@given(TEXT)
@settings(deadline=None, max_examples=30)
def test_a_gallery_has_the_same_elements_whatever_the_prompts(text: str) -> None:
    page = gallery_of(text)
    assert Elements(page).names == GALLERY
    assert page.encode()
    data = page_data(page)
    known = text.encode("utf-8", "replace").decode()
    assert data["rows"][0]["caption"] == known and data["rows"][0]["details"] == {known: known}


@given(TEXT)
def test_a_chunk_is_one_call_of_one_function(text: str) -> None:
    chunk = render_chunk([Entry(text, text, text, details={text: text})])
    assert not re.search("[<>&\u2028\u2029]", chunk) and chunk.count("\n") == 1
    (row,) = chunk_rows(chunk)
    assert row["caption"] == text.encode("utf-8", "replace").decode()
    assert json.dumps(row)
