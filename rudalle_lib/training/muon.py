"""The Muon optimizer: orthogonalised momentum, so that rare directions learn like common ones.

Matrices of the same shape are orthogonalised together by batched matrix products. torch's own Muon
processes one matrix at a time, which for a small network on a CPU takes longer than its gradients.

Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. The scale
that makes updates as large as AdamW's is from Liu et al., "Muon is scalable for LLM training",
arXiv:2502.16982, section 2.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz step, which maps singular values of 0.1 to 1 to between
0.7 and 1.2."""

ROUNDS = 5
"""Number of Newton-Schulz steps."""

UPDATE_RMS = 0.2
"""Root mean square of an update divided by the learning rate, as for AdamW."""


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices only.

    Args:
        parameters: matrices [rows, columns].
        lr: learning rate, on AdamW's scale.
        momentum: share of the momentum kept at each step, 0 to 1.
        weight_decay: share of a weight subtracted at each step, multiplied by `lr`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                updates = orthogonal(torch.stack([self._look_ahead(m, group) for m in matrices]))
                scale = group["lr"] * UPDATE_RMS * max(shape) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["decay"]).sub_(update, alpha=scale)

    def _look_ahead(self, matrix: nn.Parameter, group: dict[str, float]) -> Tensor:
        """The gradient with Nesterov momentum."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        average: Tensor = state["momentum"]
        average.lerp_(matrix.grad, 1 - group["momentum"])
        return matrix.grad.lerp(average, group["momentum"])


def orthogonal(matrices: Tensor) -> Tensor:
    """Approximate the nearest (semi-)orthogonal matrices by Newton-Schulz in bfloat16.

    Args:
        matrices: float [N, rows, columns].

    Returns:
        float32 [N, rows, columns].
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    flat = (matrices.mT if tall else matrices).bfloat16()
    flat = flat / flat.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    first, second, third = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = flat @ flat.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        flat = torch.baddbmm(flat, polynomial, flat, beta=first)
    return (flat.mT if tall else flat).float()
