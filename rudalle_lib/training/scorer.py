"""Fine-tuning of a ruCLIP: its loss on captions and images.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
arXiv:2103.00020: each image of a batch is compared with each caption, and has to find its own, and
each caption its image; the temperature is learnt. Images that have the same caption are no wrong
answers for each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.images.codecs import to_floats
from rudalle_lib.models.ruclip import RuClip
from rudalle_lib.models.ruclip_small import RuClipSmall
from rudalle_lib.training.decoder import Examples
from rudalle_lib.training.order import Order
from rudalle_lib.training.task import Batch, Task

LARGEST_SCALE = 100.0
"""Largest factor of the cosine similarities: the inverse of the smallest temperature."""


class ScorerTask(Task):
    """A ruCLIP that learns which caption belongs to which image.

    Args:
        model: the ruCLIP in float32, on any device; changed in place.
        examples: what it learns: `text`, int64 [n, T], and `image`, uint8 [n, 3, R, R].
        training: the size of the batch and so on.
        seed: seed of the order of the examples.
        held_out: what the held-out loss is measured on.

    Raises:
        SettingsError: a batch is too small to compare captions.
    """

    model: RuClip | RuClipSmall
    can_split = False

    def __init__(
        self,
        model: RuClip | RuClipSmall,
        examples: Examples,
        training: TrainingConfig,
        *,
        seed: int = 0,
        held_out: Examples | None = None,
    ) -> None:
        check_batch(training)
        self.model, self.training = model.requires_grad_(True), training
        self.examples, self.held_out = examples, held_out
        self.order = Order(examples.repeats.numpy(), seed)
        self.held_out_rows = len(held_out) if held_out is not None else 0

    def batch(self, step: int, rows: range) -> Batch:
        """Return `text`, int64 [n, T], and `image`, uint8 [n, 3, R, R]."""
        return self.examples.rows(self.order.rows_of_step(step, self.training.batch_size, rows))

    def held_out_batch(self, rows: range) -> Batch:
        """Return held-out examples, like `batch`."""
        assert self.held_out is not None
        return self.held_out.rows(rows)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the contrastive `loss`, the share of images that are `right` and the `scale`."""
        assert isinstance(model, RuClip | RuClipSmall)
        mean, std = (
            torch.tensor(values, device=batch["image"].device).view(3, 1, 1)
            for values in (model.config.mean, model.config.std)
        )
        pixels = (to_floats(batch["image"], 0.0, 1.0) - mean) / std
        image = F.normalize(model.encode_image(pixels).float(), dim=1)
        text = F.normalize(model.encode_text(batch["text"]).float(), dim=1)
        scale = model.logit_scale.exp()
        loss, right = contrastive_loss(image, text, scale, equal_rows(batch["text"]))
        return {"loss": loss, "right": right, "scale": scale.detach()}

    def optimizers(self, training: TrainingConfig) -> Sequence[torch.optim.Optimizer]:
        """Return AdamW; as for CLIP, gains, biases and the temperature have no weight decay."""
        learnt = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learnt if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
        ]
        return [torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Keep the temperature in its range."""
        self.model.logit_scale.clamp_(max=math.log(LARGEST_SCALE))


def check_batch(training: TrainingConfig) -> None:
    """Check that a step has several images.

    Raises:
        SettingsError: it has one.
    """
    if training.batch_size < 2:
        raise SettingsError(
            f"training.batch_size is {training.batch_size}, and a ruCLIP compares the captions of "
            "a batch; expected at least 2, better 64 or more"
        )


def equal_rows(text: Tensor) -> Tensor:
    """Return which captions are the same, bool [B, B], from their ids, int64 [B, T]."""
    _, kinds = text.unique(dim=0, return_inverse=True)
    return kinds[:, None] == kinds


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, equal: Tensor
) -> tuple[Tensor, Tensor]:
    """Compare each image with each caption.

    Args:
        image: features of unit length, float [B, E].
        text: the same of the captions.
        scale: factor of the cosine similarities, a scalar.
        equal: which captions are the same, bool [B, B].

    Returns:
        The mean cross-entropy of both directions, and the share of images that are most like their
        own caption; scalars.
    """
    logits = scale * image @ text.T  # [images, captions]
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(equal & ~itself, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean()
