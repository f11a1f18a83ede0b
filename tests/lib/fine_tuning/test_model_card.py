"""The card of new weights says what they are, what they were made from, and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.fine_tuning.model_card import render_card
from tests.lib.fine_tuning.test_record import record_of

Make = Callable[..., FineTuneConfig]


def test_a_card_has_base_data_figures_licence_and_settings(make: Make, tmp_path: Path) -> None:
    config = make(tmp_path)
    record = replace(record_of(config), rejected={"no_caption": 3})
    card = render_card(record, config)
    for fact in (
        "# mine", "demo-dalle, weights aaaa", "2 of 8 images were held out", "3 no\\_caption",
        "| images | 8 | 1 |", "3.0000 at first, 2.0000 at last", "generate: {model: mine}",
        "Apache-2.0", "so its terms hold for them, too", "steps: 2", "rudalle-flows fine-tune",
    ):  # fmt: skip
        assert fact in card, fact
    assert "published" not in card


def test_a_published_base_has_no_stated_licence(make: Make, tmp_path: Path) -> None:
    config = make(tmp_path, base="malevich-v3", vqgan="vqgan-f8")
    record = replace(record_of(config), base_weights={"malevich-v3": "c" * 32})
    card = render_card(record, config)
    assert "not stated on the model page" in card and "ask them" in card
    assert "weights.folder: out/weights/mine/published" in card
