"""The shipped demo models do what the README says: a smaller version of its measurement."""

import json
from pathlib import Path

import numpy as np
import pytest

import rudalle_lib.demo
from rudalle_lib.config import WeightsConfig
from rudalle_lib.scoring import Scorer
from rudalle_lib.training import quality, readme_figures
from rudalle_lib.weights import load_scorer, load_translator, load_vqgan

DEMO = Path(rudalle_lib.demo.__file__).parent
README = Path(__file__).parents[3] / "README.md"
WEIGHTS = WeightsConfig()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    loaded = load_scorer("demo-ruclip", WEIGHTS)
    return Scorer(loaded.model, loaded.tokenizer, quality.TEMPLATES)


def recorded() -> dict[str, float]:
    figures: dict[str, float] = json.loads((DEMO / "quality.json").read_text())
    return figures


def close_to_record(figures: quality.Figures, key: str, slack: float) -> None:
    """A small sample may fall short of the recorded figure by `slack`, never by more."""
    measured = figures[key]
    assert isinstance(measured, float)
    assert measured >= recorded()[key] - slack, f"{key}: {measured}, recorded {recorded()[key]}"


def test_vqgan_reconstructs_held_out_combinations() -> None:
    figures = quality.measure_vqgan(load_vqgan("demo-vqgan", WEIGHTS).model, 100)
    close_to_record(figures, "vqgan_psnr_db", 1.0)
    close_to_record(figures, "vqgan_round_trip_agreement", 0.06)


def test_decoder_draws_what_held_out_captions_ask_for(scorer: Scorer) -> None:
    vqgan = load_vqgan("demo-vqgan", WEIGHTS).model
    figures = quality.measure_decoder(vqgan, scorer, prompts=24, replicas=4, weights=WEIGHTS)
    close_to_record(figures, "agreement_one_sample", 0.12)
    close_to_record(figures, "agreement_any_of_replicas", 0.2)


def test_ruclip_finds_the_right_caption_of_64(scorer: Scorer) -> None:
    close_to_record(quality.measure_ruclip(scorer, 1), "ruclip_right_of_64", 0.05)


def test_super_resolution_beats_bicubic() -> None:
    close_to_record(quality.measure_upscaler(8, WEIGHTS), "upscaler_gain_over_bicubic_db", 2.0)


def test_translator_gives_the_exact_caption() -> None:
    figures = quality.measure_translator(load_translator("demo-marian", WEIGHTS), 64)
    close_to_record(figures, "translation_exact", 0.05)
    close_to_record(figures, "translation_variants_exact", 0.1)


def test_good_pictures_are_compared_with_bad_ones_of_their_own_prompt() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.3]], np.float32)
    mixed = np.array([[True, False, False], [True, False, False]])
    assert quality.within_prompt_auc(scores, mixed) == {"ruclip_auc_within_prompt": 0.5}
    assert quality.within_prompt_auc(scores, np.zeros_like(mixed)) == {}


def test_a_figure_that_was_not_measured_is_a_dash() -> None:
    figures = {key: 0.5 for _, key, _ in readme_figures.ROWS if "auc" not in key}
    assert "| ruCLIP: a good picture above a bad one of its prompt | – |" in readme_figures.table(
        figures
    )


def test_readme_shows_the_recorded_figures() -> None:
    readme = README.read_text(encoding="utf-8")
    assert readme_figures.fill(readme, recorded()) == readme
