"""Real-ESRGAN checkpoints in the published layouts upscale like the reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.images.upscaling import upscale
from rudalle_lib.models.rrdbnet import RrdbNet
from rudalle_lib.weights.loading import load_upscaler
from tests.parity.goldens import Golden, assert_close, load_golden


def load(
    golden: Golden, seed: int, wrapper: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> RrdbNet:
    """Save the small model like the published file and read it with the public loader."""
    names = {"num_feat": "num_features", "num_block": "num_blocks", "num_grow_ch": "growth"}
    sizes = {names.get(key, key): value for key, value in golden.config.items()}
    entry = registry.get(f"realesrgan-x{sizes['scale']}")
    entry = dataclasses.replace(entry, architecture=sizes)
    monkeypatch.setattr(registry, "get", lambda *_: entry)
    content: dict[str, Any] = golden.state(seed)
    (folder / "Real-ESRGAN").mkdir()
    path = folder / "Real-ESRGAN" / entry.files["weights"]
    torch.save({wrapper: content} if wrapper else content, path)
    return load_upscaler(entry.name, WeightsConfig(folder=str(folder))).model


@pytest.mark.parametrize(("scale", "wrapper"), [(2, "params"), (4, None), (8, "params_ema")])
def test_upscaled_image(
    scale: int, wrapper: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden(f"rrdbnet_x{scale}")
    model = load(golden, 3, wrapper, tmp_path, monkeypatch)
    assert_close(model(golden["picture"]), golden["enlarged"])


def test_bytes_of_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference truncates and we round, so bytes may differ by 1. Its edges are padded."""
    golden = load_golden("upscaling_x4")
    model = load(golden, 4, None, tmp_path, monkeypatch)
    enlarged = upscale(model, golden["picture"][None])[0].permute(1, 2, 0)
    inner = enlarged[160:-160, 160:-160]
    difference = inner.int() - golden["inner"].int()
    assert inner.float().std() > 10, "a golden with one colour would prove little"
    assert set(difference.unique().tolist()) <= {0, 1}
