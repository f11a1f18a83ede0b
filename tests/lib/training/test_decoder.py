"""Fine-tuning of decoders: what learns, LoRA and its merging, the loss, empty captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rudalle_lib.config.fine_tune import LoraConfig
from rudalle_lib.training.decoder import (
    DecoderTask,
    add_lora,
    merge_lora,
    prepare,
    trained_decoder,
)
from rudalle_lib.training.trainer import train
from tests.support.tiny_training import CONFIG, settings, tiny_decoder, tiny_examples

BATCH = dict(tiny_examples().tensors)


def test_the_default_loss_is_that_of_the_network() -> None:
    model = tiny_decoder()
    task = DecoderTask(model, tiny_examples(), settings())
    losses = task.losses(model, BATCH, 0)
    expected = model.loss(BATCH["text"], BATCH["image"])
    assert losses["loss"].item() == pytest.approx(expected.total.item(), rel=1e-6)
    only = DecoderTask(model, tiny_examples(), settings(text_weight=0.0))
    assert only.losses(model, BATCH, 0)["loss"].item() == pytest.approx(expected.image.item())


@pytest.mark.parametrize("parts", [("attention",), ("mlp",), ("attention", "mlp")])
def test_merged_network_equals_the_adapted_one(parts: tuple[str, ...]) -> None:
    model = tiny_decoder()
    names, before = set(model.state_dict()), model(BATCH["text"])
    add_lora(model, LoraConfig.model_validate({"rank": 4, "alpha": 8.0, "parts": parts}))
    assert torch.equal(model(BATCH["text"]), before)  # it starts without an effect
    learnt = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(learnt) == CONFIG.num_layers * 4 * len(parts)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in learnt:
                parameter.normal_(std=0.1)
        adapted = model(torch.cat((BATCH["text"], BATCH["image"]), 1))
        merged = merge_lora(model)(torch.cat((BATCH["text"], BATCH["image"]), 1))
    assert (adapted - before[:, :1].mean()).abs().max() > 0.01
    assert (merged - adapted).abs().max() < 1e-5
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("changes", [{"frozen": ("attention", "mlp")}, {"method": "lora"}])
def test_frozen_weights_stay_exactly_those_of_the_base(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    training = settings(dtype="bfloat16", steps=4, **changes)
    task = DecoderTask(tiny_decoder(), tiny_examples(), training)
    result = train(task, training, work=tmp_path, device="cpu")
    decoder = trained_decoder(tiny_decoder(), training, result.weights)
    tokens = torch.cat((BATCH["text"], BATCH["image"]), 1)
    with torch.no_grad():  # but for the rounding of the frozen weights to bfloat16
        assert (decoder(tokens) - task.model.float()(tokens)).abs().max() < 0.02
    base = tiny_decoder().state_dict()
    changed = {n for n, v in decoder.state_dict().items() if not torch.equal(v, base[n])}
    in_layers = {n for n in changed if n.startswith("transformer.layers") and "norm" not in n}
    if "method" in changes:
        assert (
            changed
            == in_layers
            == {n for n in base if ".weight" in n and (".attention." in n or ".mlp." in n)}
        )
    else:
        assert changed and not in_layers


def test_frozen_linear_layers_are_stored_in_the_precision_of_the_computation() -> None:
    model = prepare(tiny_decoder(), settings(frozen=("attention", "mlp"), dtype="bfloat16"))
    for name, parameter in model.named_parameters():
        frozen = ".attention." in name or ".mlp." in name
        assert parameter.requires_grad != frozen
        assert parameter.dtype == (torch.bfloat16 if frozen else torch.float32)
    adapted = prepare(tiny_decoder(), settings(method="lora", dtype="bfloat16"))
    for module in adapted.modules():
        if isinstance(module, nn.LayerNorm | nn.Embedding):
            assert module.weight.dtype == torch.float32
    learnt = [p for p in adapted.parameters() if p.requires_grad]
    assert learnt and all(p.dtype == torch.float32 for p in learnt)


@pytest.mark.parametrize("changes", [{"frozen": ("attention", "mlp")}, {"method": "lora"}])
def test_only_what_is_meant_to_learn_changes(tmp_path: Path, changes: dict[str, object]) -> None:
    training = settings(steps=3, **changes)
    task = DecoderTask(tiny_decoder(), tiny_examples(), training)
    before = {name: p.clone() for name, p in task.model.named_parameters()}
    train(task, training, work=tmp_path, device="cpu")
    changed = {n for n, p in task.model.named_parameters() if not torch.equal(p, before[n])}
    learnt = {n for n, p in task.model.named_parameters() if p.requires_grad}
    unused = {"text_pos_embeddings.weight"}  # has a row that v3 does not use, but learns, too
    assert changed | unused == learnt | unused


@pytest.mark.parametrize("changes", [{}, {"method": "lora"}])
def test_checkpointing_gives_the_same_gradients(changes: dict[str, object]) -> None:
    gradients = []
    for checkpointing in (False, True):
        training = settings(gradient_checkpointing=checkpointing, **changes)
        task = DecoderTask(tiny_decoder(), tiny_examples(), training)
        task.losses(task.model, task.batch(0, range(4)), 0)["loss"].backward()
        gradients.append([p.grad for p in task.model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        assert one is not None and other is not None
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-8)


def test_a_share_of_the_captions_is_empty_whatever_the_parts_are() -> None:
    empty = torch.tensor([2, 3, 0, 0, 0, 0, 0, 0])
    training = settings(empty_captions=0.25, batch_size=400)
    task = DecoderTask(tiny_decoder(), tiny_examples(), training, seed=1, empty_text=empty)
    whole = task.batch(0, range(400))["text"]
    assert 60 < (whole == empty).all(1).sum() < 140
    parts = torch.cat([task.batch(0, rows)["text"] for rows in (range(150), range(150, 400))])
    assert torch.equal(parts, whole)
    assert not torch.equal(task.batch(1, range(400))["text"] == empty, whole == empty)
    with pytest.raises(ValueError, match="empty_text"):
        DecoderTask(tiny_decoder(), tiny_examples(), training)
