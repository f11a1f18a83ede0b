"""Training of the demo ruCLIP: negatives, losses, batches, resuming, and an export that loads."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import rudalle_lib.demo
from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.checker import check
from rudalle_lib.demo.drawing import draw_scene
from rudalle_lib.demo.scenes import Scene, random_scene
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.text.tokenizer import Tokenizer
from rudalle_lib.training.demo import ruclip
from rudalle_lib.training.demo.decoder import scene_of
from rudalle_lib.training.demo.ruclip import ContrastiveBatch, LabelledImages
from rudalle_lib.training.demo.vqgan import load_vqgan
from rudalle_lib.training.muon import Muon

WEIGHTS = Path(rudalle_lib.demo.__file__).parent / "weights"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(WEIGHTS / "demo-dalle" / "bpe.model")


@pytest.fixture(scope="module")
def vqgan() -> VqGan:
    return load_vqgan(WEIGHTS / "demo-vqgan")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of three good and two malformed images."""
    monkeypatch.setattr(ruclip, "BATCH", 3)
    monkeypatch.setattr(ruclip, "NEGATIVES", 2)


def labelled(first: int, count: int = 4) -> LabelledImages:
    """True images of the scenes from number `first` on."""
    numbers = np.arange(first, first + count)
    images = [draw_scene(*scene_of(1, int(number))) for number in numbers]
    return LabelledImages(numbers, np.stack(images))


def test_changed_scenes_differ_in_one_attribute() -> None:
    rng = random.Random(1)
    for _ in range(300):
        scene = random_scene(rng)
        other = ruclip.changed(scene, rng)
        assert russian_caption(other) != russian_caption(scene)
        assert len(differences(scene, other)) == 1
        assert all(figure.colour != other.background for figure in other.figures)


def differences(one: Scene, other: Scene) -> list[str]:
    names = [
        name for name in ("background", "relation") if getattr(one, name) != getattr(other, name)
    ]
    for a, b in zip(one.figures, other.figures, strict=True):
        names += [
            name for name in ("shape", "colour", "size") if getattr(a, name) != getattr(b, name)
        ]
    return names


def test_damaged_images_fail_the_check(vqgan: VqGan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ruclip, "DAMAGED_BATCH", 8)
    damaged = ruclip.damaged_images(vqgan, 3, seed=1)
    assert damaged.images.shape == (3, 128, 128, 3)
    for number, image in zip(damaged.scenes, damaged.images, strict=True):
        assert not check(image, scene_of(1, int(number))[0]).ok


def test_samples_are_sorted_by_the_checker_and_cached(
    tmp_path: Path, vqgan: VqGan, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = labelled(ruclip.SCENE_OFFSET).images
    samples[1] = 0
    monkeypatch.setattr(ruclip, "draw_samples", lambda *_: samples)
    monkeypatch.setattr(ruclip, "damaged_images", lambda *_: labelled(0, 2))
    data = ruclip.prepare(tmp_path, vqgan, tmp_path, 4, seed=1)
    assert (data["good"].scenes - ruclip.SCENE_OFFSET).tolist() == [0, 2, 3]
    assert (data["bad"].scenes - ruclip.SCENE_OFFSET).tolist() == [1]
    assert len(data["damaged"].images) == 2
    monkeypatch.delattr(ruclip, "draw_samples")
    again = ruclip.prepare(tmp_path, vqgan, tmp_path, 4, seed=1)
    assert all(np.array_equal(data[name].images, again[name].images) for name in data)


@pytest.mark.usefixtures("small")
def test_batches_are_determined_by_seed_and_step(tokenizer: Tokenizer) -> None:
    data = {"good": labelled(0), "bad": labelled(10), "damaged": labelled(20)}
    one, again, other = (ContrastiveBatch(data, tokenizer, 1, step) for step in (0, 0, 1))
    assert one.images.shape == (5, 3, 128, 128)
    assert one.text.shape == (8, ruclip.CONTEXT)
    assert one.same_caption.shape == (8, 8)
    assert one.same_caption.diagonal().all()
    assert torch.equal(one.images, again.images) and torch.equal(one.text, again.text)
    assert not torch.equal(one.images, other.images)


@pytest.mark.usefixtures("small")
def test_contrastive_loss_ignores_equal_captions() -> None:
    text = F.normalize(torch.eye(8) + 0.01, dim=1)
    image = text[:5].clone()
    same = torch.eye(8, dtype=torch.bool)
    scale = torch.tensor(50.0)
    assert ruclip.contrastive_loss(text, image, scale, same) < 0.01
    text[6] = text[0]  # the same caption twice
    loss = ruclip.contrastive_loss(text, image, scale, same)
    same[0, 6] = same[6, 0] = True
    assert ruclip.contrastive_loss(text, image, scale, same) < 0.01 < loss


@pytest.mark.usefixtures("small")
def test_malformed_images_must_score_lower() -> None:
    text = torch.eye(8)
    good, bad = text[:5].clone(), text[:5].clone()
    good[3:] = text[5:7]  # malformed images unlike their captions
    bad[:3] = text[5:8]  # good images unlike their captions
    scale = torch.tensor(10.0)
    low, high = (ruclip.malformed_loss(text, image, scale) for image in (good, bad))
    assert low < 0.01 < 5 < high


def test_each_parameter_has_exactly_one_optimizer() -> None:
    model = RuClip(ruclip.make_config(64))
    muon, adam = ruclip.make_optimizers(model)
    assert isinstance(muon, Muon)
    both = [p for o in (muon, adam) for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, both)) == sorted(map(id, model.parameters()))


@pytest.mark.usefixtures("small")
def test_training_resumes_and_the_export_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"good": labelled(0), "bad": labelled(10), "damaged": labelled(20)}
    monkeypatch.setattr(ruclip, "prepare", lambda *_: data)
    work, out = tmp_path / "work", tmp_path / "ruclip"
    weights = ["--vqgan", str(WEIGHTS / "demo-vqgan"), "--decoder", str(WEIGHTS / "demo-dalle")]
    for steps in ("1", "2"):
        ruclip.main(["--work", str(work), "--out", str(out), *weights, "--steps", steps])
    assert torch.load(work / "checkpoint.pt", weights_only=True)["step"] == 2
    assert (out / "bpe.model").read_bytes() == (WEIGHTS / "demo-dalle" / "bpe.model").read_bytes()
    model = RuClip(RuClipConfig(**json.loads((out / "config.json").read_text())))
    tensors = load_file(out / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
