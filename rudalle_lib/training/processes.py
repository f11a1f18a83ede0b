"""The processes of a training, from the inside: devices, shares of rows, gradients, sums.

There may be only one. Several are found by the variables of `torchrun` (`training.launch`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.training.order import Share, shares
from rudalle_lib.training.task import Batch, Task

PATIENCE = timedelta(days=7)
"""How long a process waits for the others, for example while the first one draws samples. If one
has died, `launch` ends the others at once."""


class _Objective(nn.Module):
    """A network and its loss as one module, because DDP and FSDP watch calls of modules."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._losses = task.losses

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self._losses(self.model, batch, step)


class Processes:
    """This process among all, and the task's network, made ready to train in all of them.

    Args:
        task: what learns; its network is moved to the device and, with FSDP, spread.
        training: `sharding`, `dtype` and `images_at_once` count.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".

    Raises:
        SettingsError: the device is missing, or the task cannot split a batch and would have to.
    """

    def __init__(self, task: Task, training: TrainingConfig, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise SettingsError("devices is cuda, and PyTorch finds no GPU; expected auto or cpu")
        self._task, self._training = task, training
        self._group = Accelerator(
            cpu=device == "cpu" or not torch.cuda.is_available(),
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
        self.count, self.index = self._group.num_processes, self._group.process_index
        self.device, self.is_first = self._group.device, self._group.is_main_process
        size = training.batch_size
        if not task.can_split and (self.count > 1 or (training.images_at_once or size) < size):
            raise SettingsError(
                f"the loss of {type(task).__name__} needs all {size} images of a batch at once: "
                f"expected one process and no images_at_once, found {self.count} and "
                f"{training.images_at_once}"
            )
        task.model.to(self.device).train()
        self._objective = self._together(_Objective(task))

    def _together(self, objective: nn.Module) -> nn.Module:
        """Let several processes train together."""
        if self.count == 1:
            return objective
        if self._training.sharding == "none":
            return self._group.prepare_model(objective)
        mesh = init_device_mesh(self.device.type, (self.count,))
        for module in (*self._task.blocks(), objective):
            # Parameters must be spread between steps, also after a measurement.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        return objective

    @property
    def is_spread(self) -> bool:
        """Whether FSDP has spread the network, so that no process has the whole of it."""
        return isinstance(self._objective, FSDPModule)

    def shares(self, total: int) -> list[Share]:
        """Return the rows of this process among `total`, in parts that fit into memory."""
        at_once = self._training.images_at_once or self._training.batch_size
        return shares(total, self.count, self.index, at_once)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Compute the losses of a part of a batch, under the autocast of the settings."""
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        low = self._training.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            return self._objective(moved, step)

    @contextmanager
    def gradients(self, last: bool) -> Iterator[None]:
        """Exchange the gradients of a backward pass only with the last part of a batch.

        DDP and FSDP average over the processes, so losses are multiplied by their `count`.
        """
        if isinstance(self._objective, FSDPModule):
            self._objective.set_requires_gradient_sync(last)
        if isinstance(self._objective, DistributedDataParallel) and not last:
            with self._objective.no_sync():
                yield
        else:
            yield

    def sums(self, values: Sequence[Tensor | float]) -> list[float]:
        """Sum scalars over the processes."""
        scalars = [torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values]
        return self._group.reduce(torch.stack(scalars), "sum").tolist()

    def wait(self) -> None:
        """Wait for all processes."""
        self._group.wait_for_everyone()
