"""What each kind of network gets: sizes of images, ids of captions, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.images.scoring import preprocess
from rudalle_lib.training.data.encoders import PIXELS, make_encoder
from rudalle_lib.training.data.rejects import RejectedError
from rudalle_lib.weights.loading import load_scorer
from tests.support.tiny_stack import SIDE, TEXT_LENGTH

Tuning = Callable[..., FineTuneConfig]


@pytest.mark.parametrize(
    ("trains", "text_length", "tokens", "depends_on"),
    [
        ("decoder", TEXT_LENGTH, 16, {"tokenizer", "vqgan"}),
        ("vqgan", 0, 0, set()),
        ("scorer", 40, 0, {"tokenizer"}),
    ],
)
def test_sizes_are_those_of_the_network(
    tuning: Tuning, trains: str, text_length: int, tokens: int, depends_on: set[str]
) -> None:
    encoder = make_encoder(tuning("x", trains=trains))
    assert (encoder.height, encoder.width) == (SIDE, SIDE)
    assert (encoder.text_length, encoder.tokens) == (text_length, tokens)
    assert set(encoder.identity) == depends_on
    image = torch.zeros(3, 50, 90, dtype=torch.uint8)
    assert encoder.image_of(image, exact=False).shape == (3, SIDE, SIDE)
    with pytest.raises(RejectedError, match="expected 32 x 32 pixels, found 90 x 50"):
        encoder.image_of(image, exact=True)
    encoded = encoder.encode_images(torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8))
    assert encoded.type == encoder.image_type and len(encoded) == 2


def test_a_scorer_gets_the_pixels_that_it_scores(tuning: Tuning) -> None:
    """Preprocessing the stored square gives what preprocessing the image gives."""
    config = tuning("x", trains="scorer")
    encoder = make_encoder(config)
    sizes = load_scorer("demo-ruclip", config.weights).model.config
    image = torch.randint(0, 256, (3, 70, 51), dtype=torch.uint8)
    square = encoder.image_of(image, exact=False)
    assert torch.equal(preprocess(square[None], sizes), preprocess(image[None], sizes))
    assert encoder.image_type == PIXELS
    assert encoder.encode_images(square[None])[0].as_py() == square.numpy().tobytes()


@pytest.mark.parametrize("trains", ["decoder", "scorer"])
def test_long_captions(tuning: Tuning, trains: str) -> None:
    encoder = make_encoder(tuning("x", trains=trains))
    ids = encoder.ids_of("круг " * 50, "truncate")
    assert ids is not None and len(ids) == 40
    with pytest.raises(RejectedError, match="longer than the 40 ids"):
        encoder.ids_of("круг " * 50, "reject")
    assert encoder.ids_of("круг", "reject") is not None


def test_an_unknown_network_is_an_error(tuning: Tuning) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        make_encoder(tuning("x", base="nowhere"))
    with pytest.raises(ConfigError):
        make_encoder(tuning("x", vqgan="demo-dalle"))


def test_weights_are_loaded_when_they_are_needed(tuning: Tuning, tmp_path: Path) -> None:
    """Encoding that finds everything done reads no network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rudalle_lib.training.data.encoders.load_vqgan", None)
        make_encoder(tuning("x"))
