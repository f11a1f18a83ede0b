"""VQ-GAN and DWT checkpoints in the published layout decode and encode like the reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.weights.loading import load_vqgan
from tests.parity.goldens import Golden, assert_close, load_golden


def architecture(golden: Golden, dwt: bool) -> dict[str, Any]:
    sizes = {
        key: golden.config[key]
        for key in ("resolution", "ch", "ch_mult", "num_res_blocks", "z_channels", "n_embed")
    }
    attention = golden.config["attn_resolutions"]
    return {**sizes, "attention_resolutions": attention, "embed_dim": 32, "dwt": dwt}


@pytest.fixture(params=[False, True], ids=["plain", "dwt"])
def loaded(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[VqGan, Golden]:
    """The small model, saved in the layout of the published file and read by the public loader."""
    dwt = request.param
    golden = load_golden("vqgan_dwt" if dwt else "vqgan")
    entry = registry.get("vqgan-f8-dwt" if dwt else "vqgan-f8")
    entry = dataclasses.replace(entry, architecture=architecture(golden, dwt))
    monkeypatch.setattr(registry, "get", lambda *_: entry)
    state = golden.state(seed=1)
    if not dwt:  # the plain checkpoint has the weights of training losses
        state["loss.discriminator.main.0.weight"] = torch.zeros(64, 3, 4, 4)
    (tmp_path / "rudalle-utils").mkdir()
    torch.save(
        {"state_dict": state, "epoch": 1, "global_step": 2},
        tmp_path / "rudalle-utils" / entry.files["weights"],
    )
    return load_vqgan(entry.name, WeightsConfig(folder=str(tmp_path))).model, golden


def test_tokens_of_an_image(loaded: tuple[VqGan, Golden]) -> None:
    model, golden = loaded
    images = golden["picture"] * 2 - 1
    assert_close(model.code_logits(model.encode_features(images)), golden["logits"])
    assert model.encode(images).flatten(1).equal(golden["indices"])
    assert golden["indices"].unique().numel() > 10, "a golden with one code would prove little"


def test_image_of_tokens(loaded: tuple[VqGan, Golden]) -> None:
    model, golden = loaded
    decoded = model.decode(golden["tokens"].view(1, 8, 8))
    assert_close((decoded + 1) / 2, golden["decoded"])
    side = 128 if model.config.dwt else 64
    assert decoded.shape == (1, 3, side, side)
