"""A codebook that follows the features assigned to it, see `training.demo.vqgan`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EmaCodebook(nn.Module):
    """Codes that follow the moving average of the features assigned to them.

    Args:
        n_embed: number of codes.
        dim: channels of a code.
        decay: share of the average kept at each step, 0 to 1.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, n_embed: int, dim: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.price = 0.0
        self.register_buffer("codes", torch.randn(n_embed, dim))
        self.register_buffer("counts", torch.ones(n_embed))
        self.register_buffer("sums", torch.randn(n_embed, dim))

    def choose(self, flat: Tensor) -> Tensor:
        """Return the code with minimum distance - price * log p(code): [M, dim] to int64 [M]."""
        log_p = (self.counts + 0.1).log() - (self.counts + 0.1).sum().log()
        return (flat @ self.codes.T * 2 - self.codes.pow(2).sum(1) + self.price * log_p).argmax(1)

    @torch.no_grad()
    def start(self, flat: Tensor, generator: torch.Generator, rounds: int = 12) -> None:
        """Initialise the codes by k-means++ on features, float [M, dim]."""
        chosen = [flat[torch.randint(len(flat), (1,), generator=generator)]]
        distance = (flat - chosen[0]).pow(2).sum(1)
        for _ in range(len(self.codes) - 1):
            pick = torch.multinomial(distance + 1e-8, 1, generator=generator)
            chosen.append(flat[pick])
            distance = torch.minimum(distance, (flat - flat[pick]).pow(2).sum(1))
        self.codes.copy_(torch.cat(chosen))
        for _ in range(rounds):
            counts, sums = self._totals(flat)
            used = counts > 0
            self.codes[used] = sums[used] / counts[used, None]
        self.counts.copy_(counts.clamp(min=1))
        self.sums.copy_(self.codes * self.counts[:, None])

    @torch.no_grad()
    def follow(self, flat: Tensor, generator: torch.Generator) -> None:
        """Move the codes towards their features. Unused codes restart at a random feature."""
        counts, sums = self._totals(flat)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = self.counts < 0.03
        if dead.any():
            picks = torch.randint(len(flat), (int(dead.sum()),), generator=generator)
            self.sums[dead] = flat[picks]
            self.counts[dead] = 1.0
        self.codes.copy_(self.sums / self.counts[:, None])

    def _totals(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        index = self.choose(flat)
        counts = torch.zeros(len(self.codes)).index_add_(0, index, torch.ones(len(flat)))
        return counts, torch.zeros_like(self.codes).index_add_(0, index, flat)
