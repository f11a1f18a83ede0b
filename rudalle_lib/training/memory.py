"""How much memory the training of a decoder takes, before anything is trained.

A step of the very code that trains is run on tensors that have shapes and no content (torch's fake
tensors), and what is alive at each operation is added up. So the figure follows from `DalleConfig`
and the settings alone, for a network of any size, without its memory.
"""

from __future__ import annotations

import weakref
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.training.decoder import DecoderTask, TensorExamples
from rudalle_lib.training.run import WeightAverage

RESERVE = 0.1
"""Share of a device's memory that `largest_batch` leaves to the device and to what an allocator
loses between tensors."""

MOST_IMAGES = 256
"""The most images at once that `largest_batch` tries."""


class _Alive(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations return, as long as they are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of PyTorch
        self._sizes: dict[int, int] = {}
        self._now = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += self._sizes[key]
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self._now -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.add, result)
        return result


@lru_cache(maxsize=256)
def peak_bytes(config: DalleConfig, training: TrainingConfig, images: int) -> int:
    """Return the most bytes that the tensors of a training take, in one process.

    Memory of Python and of PyTorch itself, and scratch space inside operations, come on top.

    Args:
        config: the decoder.
        training: the method, the frozen parts, the precision, checkpointing and the average count.
        images: images at once, at least 1.
    """
    shapes = {"text": config.text_length, "image": config.image_length}
    nothing = TensorExamples({name: torch.zeros(1, length) for name, length in shapes.items()})
    settings = training.model_copy(update={"empty_captions": 0.0})
    with torch.device("meta"):
        model = Dalle(config)
    task = DecoderTask(model, nothing, settings)
    with FakeTensorMode(), _Alive() as alive:
        _materialise(task.model)
        average = WeightAverage(task.model, training.average) if training.average else None
        (optimizer,) = task.optimizers(training)
        batch = {name: torch.zeros(images, n, dtype=torch.int64) for name, n in shapes.items()}
        for _ in range(2):  # the first step makes the state of the optimizer
            alive.peak = 0
            optimizer.zero_grad(set_to_none=True)
            low = training.dtype == "bfloat16"
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                losses = task.losses(task.model, batch, 0)
            losses.pop("loss").backward()
            losses.clear()
            optimizer.step()
            if average:
                average.update(task.model, 0)
    return alive.peak


def _materialise(model: nn.Module) -> None:
    """Replace the parameters of a network on the meta device by fake ones on a CPU."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            value = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(value, parameter.requires_grad))


def largest_batch(config: DalleConfig, training: TrainingConfig, device_bytes: int) -> int:
    """Return how many images at once fit into the memory of a device, or 0 if none does.

    Args:
        config: the decoder.
        training: see `peak_bytes`.
        device_bytes: memory of the device, of which `RESERVE` is left.

    Returns:
        At most `MOST_IMAGES`.
    """
    room = device_bytes * (1 - RESERVE)

    def peak(images: int) -> int:
        return peak_bytes(config, training, images)

    if peak(1) > room:
        return 0
    fits, too_many, tried = 1, MOST_IMAGES + 1, 2
    while fits + 1 < too_many:  # a peak takes seconds: what one more image takes guides the search
        one_more = max(1.0, (peak(tried) - peak(fits)) / (tried - fits))
        if peak(tried) <= room:
            fits = tried
        else:
            too_many = tried
        guess = fits + int((room - peak(fits)) / one_more)
        tried = min(max(guess, fits + 1), too_many - 1)
    return fits
