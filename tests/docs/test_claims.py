"""What the pages say about the code is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from typer.core import TyperGroup
from typer.main import get_command

import rudalle_lib
from flows.cli import app
from rudalle_lib import registry
from rudalle_lib.dataset import layout
from rudalle_lib.prompts.rows import KNOWN_COLUMNS
from rudalle_lib.report.prometheus import PREFIX, prometheus_text
from rudalle_lib.schema.arrow import schema
from rudalle_lib.schema.records import REASONS, ImageRecord, RunTotals

ROOT = Path(__file__).resolve().parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text("utf-8")


def table(text: str, heading: str) -> str:
    """The part of a page below a heading, up to the next."""
    return text.partition(f"\n{heading}\n")[2].partition("\n#")[0]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([A-Za-z0-9_.-]+)`", text))


def first_cells(text: str) -> set[str]:
    """The names in the first column of a table."""
    rows = (line for line in text.splitlines() if line.startswith("| `"))
    return {name for row in rows for name in names_in(row.split("|")[1])}


def test_all_columns_of_the_metadata_are_named() -> None:
    assert first_cells(table(page("output"), "## Metadata columns")) == set(
        schema(ImageRecord).names
    )


def test_all_reject_reasons_are_named() -> None:
    assert first_cells(table(page("output"), "### Reject reasons")) == set(REASONS)


def test_all_columns_of_the_prompt_table_are_named() -> None:
    assert first_cells(table(page("prompt-table"), "## Columns")) == set(KNOWN_COLUMNS)


def test_the_layout_names_the_folders_of_the_output() -> None:
    version = "<version>"
    files = [layout.archive_path(form, 0, version) for form in layout.ARCHIVES]
    files += [layout.RUN_MANIFEST, layout.CARD, layout.METRICS, layout.GALLERY_PAGE]
    files += [layout.CONTACT_SHEET, layout.lease_path(1), layout.images_folder(0, version)]
    files += [path(0, version) for path in (layout.metadata_path, layout.rejects_path)]
    files += [path(0) for path in (layout.plan_path, layout.shard_manifest_path)]
    tree = page("output")
    assert [path for path in files if path not in tree] == []


def test_all_models_are_listed_with_repository_and_licence() -> None:
    rows = page("models").splitlines()
    for name in registry.names():
        entry = registry.get(name)
        (row,) = [line for line in rows if line.startswith(f"| `{name}` |")]
        assert f"| {entry.repository or 'in the package'} | {entry.licence} |" in row


def test_all_commands_are_listed() -> None:
    named = set(re.findall(r"^rudalle-flows ([\w-]+)", page("operations"), re.MULTILINE))
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    assert set(group.commands) <= named


def test_all_public_names_are_on_the_page_about_python() -> None:
    assert set(rudalle_lib.__all__) <= set(re.findall(r"\w+", page("python")))


def test_all_figures_for_prometheus_are_listed() -> None:
    text = prometheus_text("run", 1, None, RunTotals(rejected={"a": 1}, seconds={"b": 1}))
    shown = {name.removeprefix(PREFIX) for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)}
    assert {name for name in shown if f"`{name}" not in page("operations")} == set()


def test_figures_of_the_readme_are_those_of_the_page_about_performance() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    figures = re.findall(r"[\d.]+(?:x|%| GB)|\d+ to \d+ s", table(readme, "## Figures"))
    assert len(figures) >= 12
    assert [figure for figure in figures if figure not in page("performance")] == []


def test_the_glossary_has_its_terms_in_order() -> None:
    terms = re.findall(r"^\| \*\*(.+?)\*\* \|", page("glossary"), re.MULTILINE)
    assert terms == sorted(terms)
    assert len(terms) >= 25
