"""What a training is about: a network, the batch of each step, and the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.training.run import cosine

Batch = dict[str, Tensor]
"""Tensors by name; the first dimension of each is the row."""


class Task(ABC):
    """What `trainer.train` needs to know of a network and its data.

    A task must be a function of its arguments: the step alone determines the rows of its batch, so
    that a resumed training repeats exactly what an undisturbed one does. Random numbers come from
    torch's global generator, which is seeded before each step, or from generators that a method
    makes from the number of the step.

    Attributes:
        model: the network that learns, in place. Parameters with `requires_grad` learn; the others
            and what they need in memory stay as they are.
        held_out_rows: rows that are held out to measure the loss; 0 for none.
        can_split: whether the loss of a batch is the mean of the losses of its rows. If not, as for
            contrastive losses, the whole batch is computed at once, in one process.
    """

    model: nn.Module
    held_out_rows: int = 0
    can_split: bool = True

    @abstractmethod
    def batch(self, step: int, rows: range) -> Batch:
        """Return a part of the batch of a step, on the CPU.

        Args:
            step: number of the step, from 0.
            rows: consecutive places in the batch, from 0 up to `batch_size` of the settings.
        """

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Compute the losses of a part of a batch, under the autocast of the settings.

        Args:
            model: the network.
            batch: what `batch` or `held_out_batch` returned, on the device of the network.
            step: number of the step.

        Returns:
            Scalars by name, means over the rows; `loss` is minimised, all of them are reported.
        """

    def held_out_batch(self, rows: range) -> Batch:
        """Return some of the `held_out_rows`, like `batch`."""
        raise NotImplementedError(f"{type(self).__name__} has no rows held out: {rows}")

    def optimizers(self, training: TrainingConfig) -> Sequence[torch.optim.Optimizer]:
        """Return the optimizers of the parameters that learn, with peak learning rates.

        It is called after FSDP has replaced the parameters, so it reads them from `model`.
        """
        learnt = [p for p in self.model.parameters() if p.requires_grad]
        rate, decay, fused = training.learning_rate, training.weight_decay, learnt[0].is_cuda
        return [torch.optim.AdamW(learnt, rate, (0.9, 0.95), weight_decay=decay, fused=fused)]

    def schedule(self, step: int, training: TrainingConfig) -> float:
        """Return the factor of the learning rates at a step."""
        return cosine(step, training.steps, training.warmup_steps)

    def clipped(self) -> Sequence[Iterable[nn.Parameter]]:
        """Return groups of parameters; the gradient of each group is clipped by its own norm."""
        return [self.model.parameters()]

    def blocks(self) -> Iterable[nn.Module]:
        """Return the parts of the network that FSDP gathers one at a time, such as layers."""
        return ()

    def after_step(self, step: int) -> None:
        """Change the network after a step, for example to keep a parameter in its range."""
        return None

    def evaluate(self, step: int) -> dict[str, float]:
        """Measure more than the held-out loss, or draw samples; return figures to report.

        It is called at each measurement, with the weights that would be exported: by the first
        process, for which the others wait. Under FSDP, where no process has the whole network, all
        call it, because they have to gather it together; the figures of the first are reported.
        """
        return {}
