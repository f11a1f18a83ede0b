"""Fine-tuning of a VQ-GAN: what learns of it, and its loss on images.

The code of a cell is the one with the highest logit, as in the published form. The gradient passes
straight through this choice, as if it were the softmax of the logits (Gumbel-softmax: Jang, Gu,
Poole, arXiv:1611.01144).

Codes that a decoder knows can stay as they are (`keep_codes`). The encoder does not learn then, and
unused codes can take over what is reconstructed badly (`code_splits`). Or the encoder learns, but
cells whose code it was certain of must keep it, by cross-entropy. It is uncertain of new content:
the same edge in another place or colour gets another code, so that a decoder learns little from an
image. With gradients from the reconstruction the choice becomes more regular.

There is no perceptual loss, because those of `lpips`, `piq` and `torchmetrics` need torchvision and
download weights. The error of the differences between neighbouring pixels keeps edges crisp.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.images.codecs import to_floats
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.training.code_splits import look_at, split, worst_codes
from rudalle_lib.training.decoder import Examples
from rudalle_lib.training.order import Order
from rudalle_lib.training.task import Batch, Task

CERTAIN = 0.97
"""Least share of a code in the softmax of the logits for which the choice is certain."""

IMAGES_AT_ONCE = 8
"""Images that are looked at together."""


class VqganTask(Task):
    """A VQ-GAN that learns to reconstruct images.

    Args:
        model: the VQ-GAN in float32, on the device on which codes are counted; changed in place.
        examples: what it learns: `image`, uint8 [n, 3, H, W].
        training: `vqgan` has the settings of the loss and of the codes.
        seed: seed of the order of the examples.
        held_out: what the held-out loss is measured on.

    Attributes:
        kept: which codes stay as they are, bool [N].

    Raises:
        SettingsError: the VQ-GAN draws images of another size than it reads, or the settings do
            not fit together.
    """

    model: VqGan

    def __init__(
        self,
        model: VqGan,
        examples: Examples,
        training: TrainingConfig,
        *,
        seed: int = 0,
        held_out: Examples | None = None,
    ) -> None:
        check_reconstructs(model.config)
        check_splits(training)
        self.model, self.training, self.settings = model, training, training.vqgan
        self.examples, self.held_out = examples, held_out
        self.order = Order(examples.repeats.numpy(), seed)
        self.held_out_rows = len(held_out) if held_out is not None else 0
        prepare_vqgan(model, training)
        self.kept = torch.zeros(model.config.n_embed, dtype=torch.bool)
        if self.settings.keep_codes:
            self.kept = self._used(0)
            self._keep()
        self._known: VqGan | None = None
        if encoder_learns(training):
            self._known = copy.deepcopy(model).eval().requires_grad_(False)
        self._split_codes(0)

    def batch(self, step: int, rows: range) -> Batch:
        """Return `image`, uint8 [n, 3, H, W]."""
        return self.examples.rows(self.order.rows_of_step(step, self.training.batch_size, rows))

    def held_out_batch(self, rows: range) -> Batch:
        """Return held-out examples, like `batch`."""
        assert self.held_out is not None
        return self.held_out.rows(rows)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the weighted sum `loss` of the errors, and each of them."""
        assert isinstance(model, VqGan)
        images = to_floats(batch["image"], -1.0, 1.0)
        zero = images.new_zeros(())
        known: dict[str, Tensor] = {}
        if self._known is not None:
            quantised, commitment, known = self._learn_codes(model, self._known, images)
        elif self.settings.keep_codes:
            with torch.autocast(images.device.type, enabled=False):  # as when it is used
                quantised = model.embed_codes(model.encode(images))
            # What splits change of the logits counts as learnt, so that it is stored, although
            # no gradient changes it.
            commitment = 0 * sum((p.sum() for p in model.quantize.proj.parameters()), zero)
        else:
            logits = model.code_logits(model.encode_features(images)).float()
            quantised, commitment = self._quantise(model, logits)
        output = model.decode_features(quantised).float()
        differences = [(output.diff(dim=d) - images.diff(dim=d)).abs().mean() for d in (2, 3)]
        parts = {
            "absolute": (F.l1_loss(output, images), self.settings.absolute_weight),
            "squared": (F.mse_loss(output, images), self.settings.squared_weight),
            "edges": (sum(differences, zero), self.settings.edges_weight),
            "commitment": (commitment, self.settings.commitment_weight),
        }
        total = sum((w * value for value, w in parts.values()), known.get("known", zero))
        return {"loss": total, **{name: value for name, (value, _) in parts.items()}, **known}

    def optimizers(self, training: TrainingConfig) -> Sequence[torch.optim.Optimizer]:
        """Return AdamW; logits of codes have no weight decay, which would change the choice."""
        model, rate = self.model, training.learning_rate
        logits: dict[str, Any] = {
            "params": list(model.quantize.proj.parameters()), "weight_decay": 0.0
        }  # fmt: skip
        groups = [logits]
        if self._known is not None:
            encoder = [*model.encoder.parameters(), *model.quant_conv.parameters()]
            groups.append({"params": encoder})
            for group in groups:
                group["lr"] = rate * self.settings.encoder_rate
        own = {id(p) for group in groups for p in group["params"]}
        learnt = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        groups.insert(0, {"params": learnt})
        return [torch.optim.AdamW(groups, rate, (0.9, 0.99), weight_decay=training.weight_decay)]

    def after_step(self, step: int) -> None:
        """Put kept codes back, and split codes if it is time to."""
        if self.settings.keep_codes:
            self._restore()
        every = self.settings.split_every
        if every and (step + 1) % every == 0 and step + 1 + every <= self.training.steps:
            self._split_codes(step + 1)

    def _quantise(
        self, model: VqGan, logits: Tensor, fixed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose codes.

        Args:
            model: the network.
            logits: float32 [B, N, h, w].
            fixed: which cells get no gradient from what their codes are used for, bool [B, h, w].

        Returns:
            The codes [B, E, h, w], and the commitment, a scalar.
        """
        scaled = logits
        if self.settings.noise and model.training:
            scaled = logits - torch.empty_like(logits).exponential_().log()
        shares = scaled.softmax(1)
        if fixed is not None:
            shares = torch.where(fixed[:, None], shares.detach(), shares)
        chosen = scaled.argmax(1)
        hard = torch.zeros_like(shares).scatter_(1, chosen[:, None], 1.0)
        mixed = hard + shares - shares.detach()
        quantised = torch.einsum("bnhw,ne->behw", mixed, model.quantize.embed.weight)
        return quantised, F.cross_entropy(logits, chosen)

    # --- codes that stay ------------------------------------------------------------------------

    def _learn_codes(
        self, model: VqGan, before: VqGan, images: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Choose codes; those that the network was certain of before have to stay.

        Returns:
            The codes [B, E, h, w], the commitment, and figures: `known`, the loss that keeps codes,
            and of the cells that the network was certain of the share that has another code,
            `changed`.
        """
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            before.to(images.device)
            shares = before.code_logits(before.encode_features(images)).softmax(1)
            certainty, codes = shares.max(1)
        certain = certainty > CERTAIN
        logits = model.code_logits(model.encode_features(images)).float()
        quantised, commitment = self._quantise(model, logits, certain)
        known = (F.cross_entropy(logits, codes, reduction="none") * certain).mean()
        changed = ((logits.argmax(1) != codes) & certain).sum() / certain.sum().clamp(min=1)
        return quantised, commitment, {"known": known, "changed": changed}

    def _keep(self) -> None:
        """Let no gradient reach the vectors of kept codes, and remember them."""
        vectors = self.model.quantize.embed.weight

        def mask(gradient: Tensor) -> Tensor:
            return gradient.masked_fill(self.kept.to(gradient.device)[:, None], 0)

        vectors.register_hook(mask)
        self._originals = vectors.detach()[self.kept.to(vectors.device)]

    @torch.no_grad()
    def _restore(self) -> None:
        """Undo the weight decay of kept codes."""
        vectors = self.model.quantize.embed.weight
        vectors[self.kept.to(vectors.device)] = self._originals.to(vectors.device)

    # --- codes that are not used ----------------------------------------------------------------

    def _upcoming(self, step: int, count: int) -> Iterable[Tensor]:
        """Images from those of a step on, float [n, 3, H, W] in [-1, 1], in parts."""
        count = min(count, self.order.epoch_length)
        start = step * self.training.batch_size
        device = self.model.quantize.embed.weight.device
        for first in range(start, start + count, IMAGES_AT_ONCE):
            rows = self.order.rows(first, min(first + IMAGES_AT_ONCE, start + count))
            images = self.examples.rows(rows)["image"]
            yield to_floats(images.to(device), -1.0, 1.0)

    @torch.no_grad()
    def _used(self, step: int) -> Tensor:
        """Which codes the images from a step on use, bool [N] on the CPU."""
        used = torch.zeros(self.model.config.n_embed, dtype=torch.bool)
        for images in self._upcoming(step, self.settings.used_images):
            used[self.model.encode(images).unique().cpu()] = True
        return used

    @torch.no_grad()
    def _split_codes(self, step: int) -> None:
        """Give unused codes the badly reconstructed cells of other codes."""
        if not self.settings.split_every:
            return
        free = (~self.kept & ~self._used(step)).nonzero().flatten()
        if len(free) == 0:
            return
        cells = look_at(self.model, self._upcoming(step, self.settings.split_images))
        worst = worst_codes(cells, len(free))
        if worst:
            split(self.model, cells, worst, free[: len(worst)].tolist())


def encoder_learns(training: TrainingConfig) -> bool:
    """Whether the encoder learns although codes are kept."""
    return training.vqgan.keep_codes and training.vqgan.encoder_rate > 0


def check_splits(training: TrainingConfig) -> None:
    """Check that nothing else contradicts splits of codes.

    Raises:
        SettingsError: weights are averaged over splits, or the encoder learns to keep codes.
    """
    if not training.vqgan.split_every:
        return
    for key, found, contradicts, why in (
        ("average", training.average, training.average > 0, "mix codes from before and after"),
        ("vqgan.encoder_rate", training.vqgan.encoder_rate, encoder_learns(training), "undo"),
    ):
        if contradicts:
            raise SettingsError(
                f"training.{key} is {found} and would {why} a split; expected 0, or "
                "training.vqgan.split_every: null"
            )


def check_reconstructs(sizes: VqGanConfig, name: str = "the VQ-GAN") -> None:
    """Check that a VQ-GAN draws images of the size that it reads.

    Raises:
        SettingsError: it does not; the message begins with its name.
    """
    if sizes.dwt:
        raise SettingsError(
            f"{name} draws images of twice the size that it reads (dwt), so it cannot learn to "
            "reconstruct them; fine-tune the VQ-GAN without dwt"
        )


def prepare_vqgan(model: VqGan, training: TrainingConfig) -> VqGan:
    """Let a VQ-GAN learn, in place: all of it, or all but its encoder."""
    model.requires_grad_(True)
    if training.vqgan.keep_codes and not encoder_learns(training):
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    return model
