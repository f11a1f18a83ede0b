"""Fixed codes of the demo VQ-GAN: data, initialisation, losses, and training in place."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

import rudalle_lib.demo
from rudalle_lib.demo.drawing import PALETTE
from rudalle_lib.demo.scenes import all_combinations, is_held_out, random_scene
from rudalle_lib.training.demo import vqgan, vqgan_codes
from rudalle_lib.training.demo.scene_tokens import CODES, PLAIN

DEMO_VQGAN = Path(rudalle_lib.demo.__file__).parent / "weights" / "demo-vqgan"


def test_training_in_place_resumes_and_extends_the_card(
    tmp_path: Path, vqgan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vqgan_codes, "CROP_BATCH", 2)
    monkeypatch.setattr(vqgan_codes, "FULL_BATCH", 2)
    monkeypatch.setattr(vqgan_codes, "START_IMAGES", 32)
    folder = shutil.copytree(vqgan_folder, tmp_path / "vqgan")
    command = ["--work", str(tmp_path / "work"), "--vqgan", str(folder), "--steps"]
    vqgan_codes.main([*command, "2"])
    assert "vqgan_codes --steps 2" in (folder / "MODEL_CARD.md").read_text()
    vqgan_codes.main([*command, "3"])
    state = torch.load(tmp_path / "work" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    before, after = vqgan.load_vqgan(vqgan_folder), vqgan.load_vqgan(folder)
    assert after.config.n_embed == CODES
    assert not torch.equal(before.encoder.conv_in.weight, after.encoder.conv_in.weight)
    assert not torch.equal(before.quantize.embed.weight, after.quantize.embed.weight)


def test_codes_start_at_the_features_of_their_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqgan_codes, "START_IMAGES", 64)
    model = vqgan_codes.with_vocabulary(vqgan.load_vqgan(DEMO_VQGAN))
    vqgan_codes.start_codes(model, random.Random(0))
    tokens, images = vqgan_codes.make_batch(random.Random(1), 8)
    plain = tokens < len(PLAIN)
    right = model.encode(images)[plain] == tokens[plain]
    assert right.float().mean() > 0.5


def test_crops_are_whole_cells_around_an_edge() -> None:
    tokens, images = vqgan_codes.make_batch(random.Random(2), 16, crop=True)
    assert tokens.shape == (16, 8, 8)
    assert images.shape == (16, 3, 64, 64)
    assert (tokens >= len(PLAIN)).flatten(1).any(1).all()
    colour = torch.tensor(PALETTE["red"]) / 127.5 - 1
    red = (images - colour[:, None, None]).abs().amax(1) < 0.01
    whole = red.view(16, 8, 8, 8, 8).transpose(2, 3).flatten(3).all(3)
    assert torch.equal(whole, tokens == PLAIN["red"])


def test_recoloured_scenes_never_show_a_held_out_combination() -> None:
    rng = random.Random(3)
    backgrounds = set()
    for _ in range(300):
        scene = vqgan_codes.recoloured(random_scene(rng), rng)
        backgrounds.add(scene.background)
        colours = [scene.background, *(figure.colour for figure in scene.figures)]
        assert len(set(colours)) == len(colours)
        known = set(scene.combinations()) & set(all_combinations())
        assert not any(map(is_held_out, known))
    assert backgrounds == set(PALETTE)


def test_edge_loss_counts_errors_only_near_edges() -> None:
    images = torch.full((1, 3, 32, 32), -1.0)
    images[..., 16:] = 1.0
    far, near = images.clone(), images.clone()
    far[..., 0] += 0.5
    near[..., 15] += 0.5
    assert vqgan_codes.edge_loss(images, images) == 0
    assert vqgan_codes.edge_loss(far, images) == 0
    assert vqgan_codes.edge_loss(near, images) > 0
