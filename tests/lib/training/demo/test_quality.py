"""The shipped demo models reach the documented quality, measured on smaller samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import rudalle_lib.demo
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.demo.scenes import has_held_out
from rudalle_lib.images.scoring import Scorer
from rudalle_lib.training.demo import quality, readme_figures
from rudalle_lib.weights.loading import load_scorer, load_translator, load_vqgan

DEMO = Path(rudalle_lib.demo.__file__).parent
ROOT = Path(__file__).parents[4]
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "performance.md"]
"""Documents of which one has the table of figures."""

WEIGHTS = WeightsConfig()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    loaded = load_scorer("demo-ruclip", WEIGHTS)
    return Scorer(loaded.model, loaded.tokenizer, quality.TEMPLATES)


def recorded() -> dict[str, float]:
    figures: dict[str, float] = json.loads((DEMO / "quality.json").read_text())
    return figures


def close_to_record(figures: quality.Figures, key: str, slack: float) -> None:
    """Check that a small sample is at most `slack` below the recorded figure."""
    measured = figures[key]
    assert isinstance(measured, float)
    assert measured >= recorded()[key] - slack, f"{key}: {measured}, recorded {recorded()[key]}"


def test_vqgan_reconstructs_held_out_combinations() -> None:
    figures = quality.measure_vqgan(load_vqgan("demo-vqgan", WEIGHTS).model, 100)
    close_to_record(figures, "vqgan_psnr_db", 1.0)
    close_to_record(figures, "vqgan_round_trip_agreement", 0.06)


def test_decoder_draws_held_out_captions(scorer: Scorer) -> None:
    vqgan = load_vqgan("demo-vqgan", WEIGHTS).model
    figures = quality.measure_decoder(vqgan, scorer, prompts=24, replicas=4, weights=WEIGHTS)
    close_to_record(figures, "agreement_one_sample", 0.12)
    close_to_record(figures, "agreement_any_of_replicas", 0.2)


def test_ruclip_finds_the_right_caption_of_64(scorer: Scorer) -> None:
    close_to_record(quality.measure_ruclip(scorer, 1), "ruclip_right_of_64", 0.05)


def test_super_resolution_beats_bicubic() -> None:
    close_to_record(quality.measure_upscaler(8, WEIGHTS), "upscaler_gain_over_bicubic_db", 2.0)


def test_translator_returns_the_exact_caption() -> None:
    figures = quality.measure_translator(load_translator("demo-marian", WEIGHTS), 64)
    close_to_record(figures, "translation_exact", 0.05)
    close_to_record(figures, "translation_variants_exact", 0.1)


def test_good_images_are_compared_with_bad_ones_of_the_same_prompt() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.3]], np.float32)
    mixed = np.array([[True, False, False], [True, False, False]])
    assert quality.within_prompt_auc(scores, mixed) == {"ruclip_auc_within_prompt": 0.5}
    assert quality.within_prompt_auc(scores, np.zeros_like(mixed)) == {}


def test_psnr_of_a_known_error() -> None:
    truth = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    assert quality.psnr(truth + 10, truth) == pytest.approx(28.13, abs=0.01)


def test_scenes_are_determined_by_the_seed() -> None:
    assert quality.scenes_of(1, 5) == quality.scenes_of(1, 5) != quality.scenes_of(2, 5)
    assert all(map(has_held_out, quality.scenes_of(1, 20)))
    assert not any(map(has_held_out, quality.scenes_of(1, 20, held_out=False)))


def test_missing_figure_is_a_dash() -> None:
    figures = {key: 0.5 for _, key, _ in readme_figures.ROWS if "auc" not in key}
    (line,) = (row for row in readme_figures.table(figures).splitlines() if "same prompt" in row)
    assert line.endswith("| – |")


def test_document_without_marks_is_rejected() -> None:
    with pytest.raises(ValueError, match="expected the marks <!-- quality:begin -->"):
        readme_figures.fill("# A title\n", {})


def test_documentation_shows_the_recorded_figures() -> None:
    """Mend the table with `python -m rudalle_lib.training.demo.readme_figures`."""
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS if path.exists()]
    (document,) = (text for text in texts if readme_figures.BLOCK.search(text))
    assert readme_figures.fill(document, recorded()) == document
