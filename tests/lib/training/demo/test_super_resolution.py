"""Training of the demo super-resolution network: data, initialisation, and an export that loads."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.training.demo import super_resolution


def test_pairs_show_the_same_scenes_at_both_sizes() -> None:
    small, large = super_resolution.pairs(random.Random(1), 4)
    assert small.shape == (4, 3, 128, 128)
    assert large.shape == (4, 3, 256, 256)
    assert (F.avg_pool2d(large, 2) - small).abs().mean() < 0.01
    assert 0 <= large.min() < large.max() <= 1
    again = super_resolution.pairs(random.Random(1), 4)
    assert torch.equal(small, again[0])


def test_crops_of_a_batch_match() -> None:
    soft = super_resolution.pairs(random.Random(2), super_resolution.BATCH)
    inputs, targets = super_resolution.make_batch(random.Random(3), soft)
    assert inputs.shape == (super_resolution.BATCH, 3, 64, 64)
    assert targets.shape == (super_resolution.BATCH, 3, 128, 128)
    assert (F.avg_pool2d(targets, 2) - inputs).abs().mean() < 0.01


def test_initial_network_passes_colours_through() -> None:
    torch.manual_seed(0)
    model = RrdbNet(super_resolution.CONFIG).eval()
    super_resolution.start_from_colours(model)
    colours = torch.rand(4, 3, 1, 1).expand(4, 3, 32, 32)
    with torch.no_grad():
        output = model(colours)
    assert output.shape == (4, 3, 64, 64)
    assert (output - colours[..., :1, :1])[..., 16:-16, 16:-16].abs().max() < 0.15


def test_training_resumes_and_the_export_loads(
    tmp_path: Path, vqgan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(super_resolution, "BATCH", 2)
    monkeypatch.setattr(super_resolution, "POOL", 4)
    work, out = tmp_path / "work", tmp_path / "upscaler"
    folders = ["--work", str(work), "--out", str(out), "--vqgan", str(vqgan_folder)]
    for steps in ("1", "2"):
        super_resolution.main([*folders, "--steps", steps])
    assert torch.load(work / "checkpoint.pt", weights_only=True)["step"] == 2
    model = RrdbNet(RrdbNetConfig(**json.loads((out / "config.json").read_text())))
    tensors = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
