"""Real-ESRGAN checkpoints in the published layouts enlarge as the reference does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from rudalle_lib import registry
from rudalle_lib.config import WeightsConfig
from rudalle_lib.models.rrdbnet import RrdbNet
from rudalle_lib.upscaling import upscale
from rudalle_lib.weights import load_upscaler
from tests.parity.goldens import Golden, assert_close, load_golden


def load(
    golden: Golden, seed: int, wrapper: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> RrdbNet:
    """Save the shrunken model as the published file is and read it by the public loader."""
    names = {"num_feat": "num_features", "num_block": "num_blocks", "num_grow_ch": "growth"}
    sizes = {names.get(key, key): value for key, value in golden.config.items()}
    entry = registry.get(f"realesrgan-x{sizes['scale']}")
    entry = dataclasses.replace(entry, architecture=sizes)
    monkeypatch.setattr(registry, "get", lambda name, kind: entry)
    content: dict[str, Any] = golden.state(seed)
    (folder / "Real-ESRGAN").mkdir()
    path = folder / "Real-ESRGAN" / entry.files["weights"]
    torch.save({wrapper: content} if wrapper else content, path)
    return load_upscaler(entry.name, WeightsConfig(folder=str(folder))).model


@pytest.mark.parametrize(("scale", "wrapper"), [(2, "params"), (4, None), (8, "params_ema")])
def test_enlarged_picture(
    scale: int, wrapper: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden(f"rrdbnet_x{scale}")
    model = load(golden, 3, wrapper, tmp_path, monkeypatch)
    assert_close(model(golden["picture"]), golden["enlarged"])


def test_bytes_of_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from edges, which the reference pads, bytes differ only as it cuts and we round."""
    golden = load_golden("upscaling_x4")
    model = load(golden, 4, None, tmp_path, monkeypatch)
    enlarged = upscale(model, golden["picture"][None])[0].permute(1, 2, 0)
    inner = enlarged[160:-160, 160:-160]
    difference = inner.int() - golden["inner"].int()
    assert inner.float().std() > 10, "a golden of one colour would prove little"
    assert set(difference.unique().tolist()) <= {0, 1}
