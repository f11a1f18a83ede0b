"""The ten lines of Python in the README do what they say."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import rudalle_lib
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.weights import loading as weights
from tests.support.tiny_stack import SIDE, write_tiny_stack

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.fixture
def tiny_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model by its demo name, but tiny and random."""
    source = WeightsConfig(folder=str(write_tiny_stack(tmp_path / "weights")), offline=True)
    for name in ("load_decoder", "load_vqgan", "load_scorer", "load_upscaler"):
        monkeypatch.setattr(weights, name, partial(getattr(weights, name), weights=source))


def snippet() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    return code


@pytest.mark.usefixtures("tiny_weights")
def test_the_snippet_draws_ranks_and_enlarges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(snippet(), "README.md", "exec"), names)
    assert names["images"].shape == (8, 3, SIDE, SIDE)
    assert names["scores"] == sorted(names["scores"], reverse=True)
    assert sorted(names["best"]) == list(range(8))
    files = [decode_image(path.read_bytes()) for path in sorted(tmp_path.glob("*.png"))]
    assert [file.shape for file in files] == [(3, 2 * SIDE, 2 * SIDE)] * 2


def test_the_snippet_is_ten_lines_at_most() -> None:
    assert len([line for line in snippet().splitlines() if line.strip()]) <= 10


@pytest.mark.usefixtures("tiny_weights")
def test_the_same_seed_draws_the_same_images_in_any_batch() -> None:
    decoder, vqgan = rudalle_lib.load_decoder("demo-dalle"), rudalle_lib.load_vqgan("demo-vqgan")
    one = rudalle_lib.draw_images(decoder, vqgan, " красный  круг", images=3, seed=1)
    two = rudalle_lib.draw_images(decoder, vqgan, "красный круг", 2, seed=1, batch_size=1)
    assert (one[:2].int() - two.int()).abs().max() <= 1
    other = rudalle_lib.draw_images(decoder, vqgan, "красный круг", 2, seed=2)
    assert not torch.equal(one[:2], other)


def test_names_are_those_of_their_modules_and_others_are_none() -> None:
    for name in rudalle_lib.__all__:
        assert getattr(rudalle_lib, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = rudalle_lib.nothing


def test_former_names_lead_to_the_current_ones() -> None:
    for former, current in rudalle_lib._FORMER.items():
        with pytest.warns(DeprecationWarning, match=f"{former} is now called {current}"):
            assert getattr(rudalle_lib, former) is getattr(rudalle_lib, current)
