"""Splits of a VQ-GAN's codes: a code that no image uses takes over cells of another one.

The cells of a code that are reconstructed badly get an unused code (Linde, Buzo, Gray, "An
algorithm for vector quantizer design", 1980). New content thus gets codes of its own, even if those
that were in use stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rudalle_lib.models.vqgan import VqGan

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
