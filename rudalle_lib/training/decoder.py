"""Fine-tuning of a decoder: what learns of it, and its loss on texts and image tokens.

The whole network learns, or some parts of it, or low-rank matrices beside its linear layers (LoRA:
Hu et al., arXiv:2106.09685, by `peft`). Weights that learn are float32; the weights of frozen
linear layers are stored in the precision of the computation, which saves half of their memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import LoraConfig, Part, TrainingConfig
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.training.checkpoints import load_learnt, read_learnt, whole
from rudalle_lib.training.order import Order
from rudalle_lib.training.task import Batch, Task

PARTS: dict[Part, str] = {"attention": ".attention.", "mlp": ".mlp.", "embeddings": "_embeddings."}
"""Parts that can be frozen, and a substring of the names of their parameters."""

LORA_LAYERS = {
    "attention": ("query_key_value", "dense"),
    "mlp": ("dense_h_to_4h", "dense_4h_to_h"),
}
"""Linear layers of each part, by the last part of their name."""

ADAPTER = "default"
"""The name that peft gives to the matrices of LoRA."""


class Examples(Protocol):
    """Encoded captions and images, numbered from 0.

    Attributes:
        repeats: how often an epoch has each of them, int64 [N].
    """

    repeats: Tensor

    def __len__(self) -> int:
        """Return the number of examples."""

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return some examples.

        They have `text`, int64 [n, T], 0 = pad, but for a VQ-GAN, and `image`: int64 [n, H * W]
        tokens for a decoder, else uint8 [n, 3, H, W].
        """


class TensorExamples:
    """Examples that are in memory.

    Args:
        tensors: `text` and `image`, with N rows each.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.repeats = torch.ones(len(self), dtype=torch.int64)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(next(iter(self.tensors.values())))

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return some examples."""
        return {name: values[list(indices)] for name, values in self.tensors.items()}


class DecoderTask(Task):
    """A decoder that learns pairs of texts and images.

    Args:
        model: the decoder in float32, on any device; changed in place.
        examples: what it learns.
        training: the method, the frozen parts, the weights of the losses and so on.
        seed: seed of the order of the examples and of the choice of empty captions.
        held_out: what the held-out loss is measured on.
        empty_text: int64 [T], the ids of an empty caption; needed for `empty_captions`.
    """

    model: Dalle

    def __init__(
        self,
        model: Dalle,
        examples: Examples,
        training: TrainingConfig,
        *,
        seed: int = 0,
        held_out: Examples | None = None,
        empty_text: Tensor | None = None,
    ) -> None:
        if training.empty_captions and empty_text is None:
            raise ValueError("empty_captions needs the ids of an empty caption, empty_text")
        self.model = prepare(model, training, seed)
        self.training, self.seed = training, seed
        self.examples, self.held_out = examples, held_out
        self.order = Order(examples.repeats.numpy(), seed)
        self.held_out_rows = len(held_out) if held_out is not None else 0
        self._empty_text = empty_text

    def batch(self, step: int, rows: range) -> Batch:
        """Return `text` int64 [n, T] and `image` int64 [n, H * W]."""
        size, share = self.training.batch_size, self.training.empty_captions
        batch = self.examples.rows(self.order.rows_of_step(step, size, rows))
        if self._empty_text is not None and share:
            empty = [random.Random(f"{self.seed}/{step}/{row}").random() < share for row in rows]
            batch["text"] = torch.where(
                torch.tensor(empty)[:, None], self._empty_text, batch["text"]
            )
        return batch

    def held_out_batch(self, rows: range) -> Batch:
        """Return held-out examples, like `batch`."""
        assert self.held_out is not None
        return self.held_out.rows(rows)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the weighted mean `loss` of the cross-entropies `text` and `image`."""
        assert isinstance(model, Dalle)
        both = model.loss(batch["text"], batch["image"])
        text, image = self.training.text_weight, self.training.image_weight
        loss = (text * both.text + image * both.image) / (text + image)
        return {"loss": loss, "text": both.text, "image": both.image}

    def blocks(self) -> Iterable[nn.Module]:
        """Return the layers."""
        return self.model.transformer.layers


def prepare(model: Dalle, training: TrainingConfig, seed: int = 0) -> Dalle:
    """Let a decoder learn by the method of the settings, in place.

    Args:
        model: the decoder in float32.
        training: its `method`, `frozen`, `lora`, `dtype` and `gradient_checkpointing` count.
        seed: seed of the small matrices of LoRA.

    Returns:
        The same decoder.
    """
    model.transformer.gradient_checkpointing = training.gradient_checkpointing
    if training.method == "lora":
        add_lora(model, training.lora, seed)
    else:
        for name, parameter in model.named_parameters():
            frozen = any(PARTS[part] in name for part in training.frozen)
            parameter.requires_grad_(not frozen)
    if training.dtype == "bfloat16":
        for module in model.modules():
            if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                module.to(torch.bfloat16)
    return model


def add_lora(model: Dalle, lora: LoraConfig, seed: int = 0) -> Dalle:
    """Freeze a decoder and put small matrices beside its linear layers, in place.

    Args:
        model: the decoder.
        lora: rank, scale and layers.
        seed: seed of the initial values, with which the decoder still computes the same.

    Returns:
        The same decoder.
    """
    layers = "|".join(rf"{part}\.{layer}" for part in lora.parts for layer in LORA_LAYERS[part])
    config = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # it is only multiplied
        lora_dropout=lora.dropout,
        target_modules=rf"transformer\.layers\.\d+\.({layers})",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LoraModel(model, config, ADAPTER)
    return model


@torch.no_grad()
def merge_lora(model: Dalle) -> Dalle:
    """Add the small matrices of `add_lora` to the weights, in float32 and in place.

    Returns:
        The same decoder. It computes as before but for rounding, and has the parameters of a
        decoder that never had small matrices.
    """
    model.float()
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model


def gathered_decoder(model: Dalle, training: TrainingConfig) -> Dalle | None:
    """Gather a decoder that FSDP has spread; all processes must call it.

    Args:
        model: the decoder, made ready by `prepare`.
        training: the settings of the training.

    Returns:
        In the first process a copy on the CPU, in the others None.
    """
    is_first, state = torch.distributed.get_rank() == 0, {}
    for name, tensor in model.state_dict().items():  # one after the other, to save memory
        gathered = whole(tensor)
        if is_first:
            state[name] = gathered
    if not is_first:
        return None
    with torch.device("meta"):
        copied = Dalle(model.config)
    prepare(copied, training).load_state_dict(state, assign=True)
    return copied


def trained_decoder(base: Dalle, training: TrainingConfig, learnt: Path) -> Dalle:
    """Put what a training has learnt into the decoder that it started from.

    Weights that were frozen stay exactly those of the base, whatever precision they had while the
    others learnt. Small matrices of LoRA are merged.

    Args:
        base: the decoder, freshly loaded in float32; changed in place.
        training: the settings of the training.
        learnt: file of `trainer.Trained.weights`.

    Returns:
        The base decoder with new weights, in float32.

    Raises:
        TrainingError: the file is missing or damaged.
        WeightsError: it is of another decoder or another method.
    """
    prepare(base, training.model_copy(update={"dtype": "float32"}))
    load_learnt(base, read_learnt(learnt), str(learnt))
    return merge_lora(base) if training.method == "lora" else base
