"""Fine-tuning of VQ-GANs: the loss falls, kept codes stay, unused codes take over what is bad."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rudalle_lib.config.fine_tune import EvaluationConfig, TrainingConfig
from rudalle_lib.errors import SettingsError, StoppedError
from rudalle_lib.images.codecs import to_floats
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.training.decoder import TensorExamples
from rudalle_lib.training.trainer import train
from rudalle_lib.training.vqgan import CERTAIN, VqganTask
from tests.support.tiny_vqgan import TINY_VQGAN


def tiny_vqgan(seed: int = 0, **changes: Any) -> VqGan:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VqGan(VqGanConfig(**{**vars(TINY_VQGAN), **changes}))


def squares(colours: Tensor, count: int, seed: int = 0) -> TensorExamples:
    """Images with a square of one of some colours, uint8 [n, 3], on white."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((count, 3, 16, 16), 240, dtype=torch.uint8)
    for image in images:
        colour = colours[torch.randint(len(colours), (), generator=generator)]
        top, left = (2 * torch.randint(0, 4, (2,), generator=generator)).tolist()
        image[:, top : top + 8, left : left + 8] = colour[:, None, None]
    return TensorExamples({"image": images})


OLD = torch.tensor([[20, 20, 20], [200, 30, 40]], dtype=torch.uint8)
NEW = torch.tensor([[20, 60, 230]], dtype=torch.uint8)


def settings(steps: int = 60, batch_size: int = 8, **codes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({
        "steps": steps, "batch_size": batch_size, "learning_rate": 3e-3, "warmup_steps": 5,
        "weight_decay": 0.1, "dtype": "float32", "vqgan": codes,
    })  # fmt: skip


def error(model: VqGan, examples: TensorExamples) -> float:
    images = to_floats(examples.tensors["image"], -1.0, 1.0)
    return float((model.decode(model.encode(images)) - images).abs().mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> VqGan:
    """A VQ-GAN that has learnt squares of the old colours from scratch."""
    training = settings(steps=150, keep_codes=False, split_every=25)
    task = VqganTask(tiny_vqgan(), squares(OLD, 64), training)
    train(task, training, work=tmp_path_factory.mktemp("vqgan"), device="cpu")
    return task.model


def copied(model: VqGan) -> VqGan:
    other = VqGan(model.config)
    other.load_state_dict(model.state_dict())
    return other


def test_reconstruction_improves_and_uses_several_codes(trained: VqGan) -> None:
    held_out = squares(OLD, 16, seed=1)
    assert error(trained, held_out) < 0.3 * error(tiny_vqgan(), held_out)
    codes = trained.encode(to_floats(held_out.tensors["image"], -1.0, 1.0)).unique()
    assert len(codes) >= 3


def test_held_out_loss_falls(tmp_path: Path) -> None:
    training = settings(steps=40, keep_codes=False)
    task = VqganTask(
        tiny_vqgan(), squares(OLD, 32), training, held_out=squares(OLD, 9, seed=1), seed=2
    )
    losses: list[float] = []
    train(
        task, training, work=tmp_path, device="cpu",
        evaluation=EvaluationConfig(every=20, samples=0),
        on_figures=lambda _, figures: losses.append(figures.get("held_out_loss", 0.0)),
    )  # fmt: skip
    measured = [loss for loss in losses if loss]
    assert len(measured) == 2 and measured[1] < measured[0]


def test_kept_codes_stay_bit_by_bit_and_new_colours_get_free_ones(
    trained: VqGan, tmp_path: Path
) -> None:
    model = copied(trained)
    both = TensorExamples(
        {"image": torch.cat([squares(OLD, 24).tensors["image"], squares(NEW, 24).tensors["image"]])}
    )
    training = settings(steps=160, split_every=20, used_images=48, split_images=48)
    before = error(trained, squares(NEW, 16, seed=3))
    task = VqganTask(model, both, training)
    kept = task.kept
    assert 2 <= kept.sum() < len(kept)
    train(task, training, work=tmp_path, device="cpu")
    for name in ("embed.weight", "proj.weight", "proj.bias"):
        was, now = (m.quantize.get_parameter(name)[kept] for m in (trained, model))
        assert torch.equal(was, now)
    new = model.encode(to_floats(squares(NEW, 16, seed=3).tensors["image"], -1.0, 1.0)).unique()
    assert (~kept[new]).any()
    assert error(model, squares(NEW, 16, seed=3)) < 0.5 * before
    assert error(model, squares(OLD, 16, seed=3)) < 2 * error(trained, squares(OLD, 16, seed=3))


def test_an_encoder_that_learns_keeps_the_codes_that_it_was_certain_of(
    trained: VqGan, tmp_path: Path
) -> None:
    model = copied(trained)
    both = TensorExamples(
        {"image": torch.cat([squares(OLD, 24).tensors["image"], squares(NEW, 24).tensors["image"]])}
    )
    training = settings(steps=120, split_every=None, encoder_rate=0.3)
    new, old = (to_floats(squares(c, 16, seed=3).tensors["image"], -1.0, 1.0) for c in (NEW, OLD))
    task = VqganTask(model, both, training)
    figures: list[dict[str, float]] = []
    train(
        task, training, work=tmp_path, device="cpu", on_figures=lambda _, one: figures.append(one)
    )
    assert torch.equal(*(m.quantize.embed.weight[task.kept] for m in (trained, model)))
    assert not torch.equal(trained.encoder.conv_in.weight, model.encoder.conv_in.weight)
    certain = trained.code_logits(trained.encode_features(old)).softmax(1).amax(1) > CERTAIN
    assert certain.float().mean() > 0.5
    same = model.encode(old) == trained.encode(old)
    assert same[certain].float().mean() > 0.99
    assert figures[-1]["changed"] < 0.02 and "known" in figures[-1]
    assert not torch.equal(model.encode(new), trained.encode(new))
    assert error(model, squares(NEW, 16, seed=3)) < 0.5 * error(trained, squares(NEW, 16, seed=3))


def test_learnt_weights_load_in_the_published_layout(trained: VqGan) -> None:
    other = tiny_vqgan(seed=5)
    other.load_state_dict(trained.state_dict(), strict=True)
    images = to_floats(squares(OLD, 4).tensors["image"], -1.0, 1.0)
    assert torch.equal(other.encode(images), trained.encode(images))


@pytest.mark.parametrize(
    "codes",
    [
        {"split_every": 4, "used_images": 16, "split_images": 16},
        {"split_every": None, "encoder_rate": 0.5},
    ],
)
def test_a_resumed_training_learns_the_same(
    trained: VqGan, tmp_path: Path, codes: dict[str, Any]
) -> None:
    training = settings(steps=12, **codes)

    def learn(work: Path, stop: Callable[[], bool] | None = None) -> dict[str, Tensor]:
        task = VqganTask(copied(trained), squares(NEW, 32), training)
        train(task, training, work=work, device="cpu", stop=stop)
        return task.model.state_dict()

    steps = iter(range(12))
    with pytest.raises(StoppedError):
        learn(tmp_path / "b", lambda: next(steps) == 5)
    whole, resumed = learn(tmp_path / "a"), learn(tmp_path / "b")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_choice_is_that_of_the_network_and_lets_gradients_through() -> None:
    model = tiny_vqgan()
    task = VqganTask(model, squares(OLD, 8), settings(keep_codes=False, split_every=None))
    features = torch.randn(2, 8, 4, 4, requires_grad=True)
    logits = model.code_logits(features)
    quantised, commitment = task._quantise(model, logits)
    chosen = logits.argmax(1)
    assert torch.allclose(quantised, model.embed_codes(chosen), atol=1e-6)
    quantised.square().sum().backward()
    assert features.grad is not None and features.grad.abs().sum() > 0
    assert commitment > 0


def test_noise_chooses_codes_by_chance() -> None:
    model = tiny_vqgan()
    training = settings(keep_codes=False, split_every=None, noise=True)
    task = VqganTask(model, squares(OLD, 8), training)
    logits = model.code_logits(torch.randn(1, 8, 4, 4))
    assert not torch.equal(task._quantise(model, logits)[0], task._quantise(model, logits)[0])


def test_a_decoder_of_wavelets_is_refused() -> None:
    with pytest.raises(SettingsError, match="dwt"):
        VqganTask(tiny_vqgan(dwt=True), squares(OLD, 2), settings())


@pytest.mark.parametrize(
    ("training", "key"),
    [
        (settings().model_copy(update={"average": 0.9}), "training.average"),
        (settings(encoder_rate=0.2), "training.vqgan.encoder_rate"),
    ],
)
def test_what_contradicts_splits_is_refused(training: TrainingConfig, key: str) -> None:
    with pytest.raises(SettingsError, match=f"^{key} .*split_every: null$"):
        VqganTask(tiny_vqgan(), squares(OLD, 2), training)
