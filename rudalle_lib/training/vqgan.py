"""Fine-tuning of a VQ-GAN: what learns of it, and its loss on images.

The code of a cell is the one with the highest logit, as in the published form. The gradient passes
straight through this choice, as if it were the softmax of the logits (Gumbel-softmax: Jang, Gu,
Poole, arXiv:1611.01144).

A code that no image uses takes over the cells of another code that are reconstructed badly: that
code is split (Linde, Buzo, Gray, "An algorithm for vector quantizer design", 1980). New content
thus gets codes of its own, even if the codes that were in use stay as they are. To keep what these
stand for, too, the encoder does not learn then: only splits change which code is chosen.

There is no perceptual loss, because those of `lpips`, `piq` and `torchmetrics` need torchvision and
download weights. The error of the differences between neighbouring pixels keeps edges crisp.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.images.codecs import to_floats
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.training.decoder import Examples
from rudalle_lib.training.order import Order
from rudalle_lib.training.task import Batch, Task

BAD = 2.0
"""A cell is reconstructed badly if its error is this many times the mean error of all cells."""

FEWEST_CELLS = 8
"""Least number of badly reconstructed cells for which a code is split."""

WORST_SHARE = 0.25
"""Codes are split together if their badly reconstructed cells have at least this share of the error
of the worst code. Those of the others are often bad because of the worst, and are looked at again
later."""

FIT_STEPS, CERTAINTY = 50, 10.0
"""Most iterations with which the logits of new codes are fitted, and the difference of logits that
they start with between two codes' mean features."""

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
        check_average(training)
        self.model, self.training, self.settings = model, training, training.vqgan
        self.examples, self.held_out = examples, held_out
        self.order = Order(examples.repeats.numpy(), seed)
        self.held_out_rows = len(held_out) if held_out is not None else 0
        prepare_vqgan(model, training)
        self.kept = torch.zeros(model.config.n_embed, dtype=torch.bool)
        if self.settings.keep_codes:
            self.kept = self._used(0)
            self._keep()
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
        if self.settings.keep_codes:
            with torch.autocast(images.device.type, enabled=False):  # as when it is used
                quantised = model.embed_codes(model.encode(images))
            # What splits change of the logits counts as learnt, so that it is stored, although
            # no gradient changes it.
            commitment = 0 * sum((p.sum() for p in model.quantize.proj.parameters()), zero)
        else:
            quantised, commitment = self._quantise(model, model.encode_features(images))
        output = model.decode_features(quantised).float()
        differences = [(output.diff(dim=d) - images.diff(dim=d)).abs().mean() for d in (2, 3)]
        parts = {
            "absolute": (F.l1_loss(output, images), self.settings.absolute_weight),
            "squared": (F.mse_loss(output, images), self.settings.squared_weight),
            "edges": (sum(differences, zero), self.settings.edges_weight),
            "commitment": (commitment, self.settings.commitment_weight),
        }
        total = sum((w * value for value, w in parts.values()), zero)
        return {"loss": total, **{name: value for name, (value, _) in parts.items()}}

    def optimizers(self, training: TrainingConfig) -> Sequence[torch.optim.Optimizer]:
        """Return AdamW; logits of codes have no weight decay, which would change the choice."""
        logits = list(self.model.quantize.proj.parameters())
        own = {id(p) for p in logits}
        learnt = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        groups: list[dict[str, Any]] = [
            {"params": learnt},
            {"params": logits, "weight_decay": 0.0},
        ]
        decay = training.weight_decay
        return [torch.optim.AdamW(groups, training.learning_rate, (0.9, 0.99), weight_decay=decay)]

    def after_step(self, step: int) -> None:
        """Put kept codes back, and split codes if it is time to."""
        if self.settings.keep_codes:
            self._restore()
        every = self.settings.split_every
        if every and (step + 1) % every == 0 and step + 1 + every <= self.training.steps:
            self._split_codes(step + 1)

    def _quantise(self, model: VqGan, features: Tensor) -> tuple[Tensor, Tensor]:
        """Choose codes. [B, E, h, w] to the codes [B, E, h, w] and the commitment, a scalar."""
        logits = model.code_logits(features).float()  # [B, N, h, w]
        scaled = logits
        if self.settings.noise and model.training:
            scaled = logits - torch.empty_like(logits).exponential_().log()
        shares = scaled.softmax(1)
        chosen = scaled.argmax(1)
        hard = torch.zeros_like(shares).scatter_(1, chosen[:, None], 1.0)
        mixed = hard + shares - shares.detach()
        quantised = torch.einsum("bnhw,ne->behw", mixed, model.quantize.embed.weight)
        return quantised, F.cross_entropy(logits, chosen)

    # --- codes that stay ------------------------------------------------------------------------

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


def check_average(training: TrainingConfig) -> None:
    """Check that the weights of a VQ-GAN are not averaged over splits of codes.

    Raises:
        SettingsError: they are.
    """
    if training.average and training.vqgan.split_every:
        raise SettingsError(
            f"training.average is {training.average} and would mix codes from before and after a "
            "split; expected 0, or training.vqgan.split_every: null"
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
    """Let a VQ-GAN learn, in place: all of it, or with kept codes all but its encoder."""
    model.requires_grad_(True)
    if training.vqgan.keep_codes:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    return model


@dataclass(frozen=True)
class Cells:
    """Cells of images, on one device.

    Attributes:
        features: float [M, E], not quantised.
        codes: int64 [M], the chosen ones.
        logits: float [M], of the chosen codes.
        errors: float [M], the mean absolute errors of the pixels.
    """

    features: Tensor
    codes: Tensor
    logits: Tensor
    errors: Tensor

    @property
    def bad(self) -> Tensor:
        """Which cells are reconstructed badly, bool [M]."""
        return self.errors > BAD * self.errors.mean()


@torch.no_grad()
def look_at(model: VqGan, parts: Iterable[Tensor]) -> Cells:
    """Encode and decode images, float [n, 3, H, W] in [-1, 1] each, at least one."""
    found: list[tuple[Tensor, ...]] = []
    for images in parts:
        features = model.encode_features(images)
        logits, codes = model.code_logits(features).max(1)
        errors = (model.decode(codes) - images).abs().mean(1)
        errors = F.avg_pool2d(errors, model.config.downsampling)
        flat = features.permute(0, 2, 3, 1).flatten(0, 2)
        found.append((flat, codes.flatten(), logits.flatten(), errors.flatten()))
    return Cells(*map(torch.cat, zip(*found, strict=True)))


def worst_codes(cells: Cells, most: int) -> list[int]:
    """Return the codes whose badly reconstructed cells have the largest error, the worst first.

    Args:
        cells: the cells of some images.
        most: how many codes are returned at most.
    """
    bad, total = cells.bad, int(cells.codes.max()) + 1
    counts = torch.bincount(cells.codes[bad], minlength=total)
    errors = torch.zeros(total, device=bad.device).index_add_(
        0, cells.codes[bad], cells.errors[bad]
    )
    errors[counts < FEWEST_CELLS] = 0
    chosen = errors >= max(WORST_SHARE * float(errors.max()), 1e-12)
    ranked = errors.masked_fill(~chosen, 0).argsort(descending=True)
    return [int(code) for code in ranked[: min(most, int(chosen.sum()))]]


@torch.no_grad()
def split(model: VqGan, cells: Cells, codes: Sequence[int], new: Sequence[int]) -> None:
    """Let new codes take over the badly reconstructed cells of other codes, in place.

    A new code starts with the vector of the code that it takes from. Its logit is a linear function
    of the features that tells its cells from all others, found by logistic regression.

    Args:
        model: the VQ-GAN.
        cells: the cells of some images.
        codes: the codes that are split; each has badly reconstructed cells.
        new: as many unused codes.
    """
    quantizer, bad = model.quantize, cells.bad
    assert quantizer.proj.bias is not None
    target = torch.zeros_like(cells.codes)  # 0: the code that was chosen
    weights, biases = [], []
    for number, code in enumerate(codes, 1):
        mine, others = bad & (cells.codes == code), ~bad & (cells.codes == code)
        target[mine] = number
        centre = cells.features[mine].mean(0)
        other = cells.features[others if others.any() else ~mine].mean(0)
        scale = CERTAINTY / (centre - other).pow(2).sum().clamp(min=1e-6)
        weights.append(quantizer.proj.weight[code, :, 0, 0] + scale * (centre - other))
        shift = scale * (centre.pow(2).sum() - other.pow(2).sum()) / 2
        biases.append(quantizer.proj.bias[code] - shift)
    weight, bias = _regress(cells, target, torch.stack(weights), torch.stack(biases))
    quantizer.embed.weight[new] = quantizer.embed.weight[list(codes)]
    quantizer.proj.weight[new] = weight[:, :, None, None]
    quantizer.proj.bias[new] = bias


def _regress(cells: Cells, target: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the logits of K new codes: weights [K, E] and biases [K]; `target` is 0 to K."""
    weight, bias = (value.detach().clone().requires_grad_(True) for value in (weight, bias))
    fitted = torch.optim.LBFGS([weight, bias], max_iter=FIT_STEPS, line_search_fn="strong_wolfe")
    start = weight.detach().clone()

    def closure() -> Tensor:
        fitted.zero_grad()
        logits = torch.cat([cells.logits[:, None], cells.features @ weight.T + bias], 1)
        loss = F.cross_entropy(logits, target) + 1e-4 * (weight - start).pow(2).mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        fitted.step(closure)
    return weight.detach(), bias.detach()
