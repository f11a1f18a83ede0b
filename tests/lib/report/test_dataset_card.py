"""The dataset card: valid front matter, the run's figures, and no markup from names."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from rudalle_lib.report.dataset_card import CardModel, render_dataset_card
from rudalle_lib.schema.arrow import schema
from rudalle_lib.schema.records import ImageRecord, RunManifest, RunTotals, RunUsage, ScoreSummary

TOTALS = RunTotals(
    3,
    62,
    512,
    118,
    {"duplicate": 1, "not_in_best_k": 394},
    {"generate": 41.5},
    0,
    {"generate": 2.5},
)
USAGE = RunUsage(60.0, 8.53, 2, 0.25, 0.02, 0.06, 0.000508)
SCORES = ScoreSummary(0.21, 0.354, 0.48, (100, 18))


def card(name: str = "demo", totals: RunTotals = TOTALS, **present: Any) -> str:
    versions = {"rudalle-flows": "0.1.0"}
    manifest = RunManifest(
        name, {"seed": 7}, "d", {}, versions, 3, totals, "start", "end", {}, USAGE, SCORES
    )
    models = [CardModel("generate", "demo-dalle", "Apache-2.0", "0123456789abcdef0123")]
    return render_dataset_card(manifest, models, ["en", "ru"], schema(ImageRecord), **present)


@pytest.mark.parametrize("name", ["demo", "a: b #c", '"]\n---\n', "<b>|*x*"])
def test_the_front_matter_is_valid_yaml_for_any_name(name: str) -> None:
    front = yaml.safe_load(card(name).split("\n---\n")[0])
    assert front["pretty_name"] == name
    assert front["language"] == ["en", "ru"]


def test_it_lists_the_figures_models_and_every_column() -> None:
    text = card()
    for part in ("118", "| `not_in_best_k` | 394 |", "0.210 / 0.354 / 0.480"):
        assert part in text
    for row in (
        "| ... generate | 41.5 s, 2.5 s waiting for a device |",
        "| ... images drawn per second | 8.53 |",
        "| ... idle share of 2 devices | 25% |",
        "| ... per published image | 0.000508 |",
    ):
        assert row in text
    assert "| generate | demo-dalle | Apache-2.0 | `0123456789abcdef` |" in text
    for name in schema(ImageRecord).names:
        assert f"| `{name}` |" in text
    assert "{{" not in text


def test_it_links_only_existing_files() -> None:
    assert "contact_sheet.png" not in card() and "gallery" not in card()
    both = card(contact_sheet=True, gallery=True)
    assert "![Contact sheet](contact_sheet.png)" in both and "gallery/index.html" in both


def test_an_empty_run_has_a_card() -> None:
    assert "Nothing was rejected." in card(totals=RunTotals())
