"""Muon: momentum whose matrices are made orthogonal, so that rare directions learn like others.

Matrices of one shape are orthogonalised together, in one batched product after another: on a CPU a
small network spends more time in torch's own Muon, one matrix at a time, than in its gradients.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the scale
that makes updates as large as AdamW's: Liu et al., "Muon is scalable for LLM training",
arXiv:2502.16982, section 2.2.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz step: singular values of 0.1 to 1 end between 0.7 and 1.2."""
ROUNDS = 5
UPDATE_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices alone.

    Args:
        parameters: matrices [rows, columns].
        lr: learning rate, on AdamW's scale.
        momentum: share of the momentum kept at each step, 0 to 1.
        weight_decay: share of a weight taken off at each step, times `lr`.
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
        """Update every matrix that has a gradient."""
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
        """The gradient with Nesterov's momentum."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        average: Tensor = state["momentum"]
        average.lerp_(matrix.grad, 1 - group["momentum"])
        return matrix.grad.lerp(average, group["momentum"])


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly, by Newton-Schulz in bfloat16.

    float [N, rows, columns] to float32 of the same shape.
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
