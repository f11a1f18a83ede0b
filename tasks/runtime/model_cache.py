"""A cache of loaded models that keeps the last few of every device."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Model = TypeVar("Model")

MODELS_PER_DEVICE = 8
"""How many models of one kind a device keeps; the one that was used longest ago is dropped."""

DEVICE_ARGUMENT = 2
"""Position of the device, or devices, among the arguments of a loader."""


class ModelCache(Generic[Arguments, Model]):
    """Remembers the models that a function has loaded; a model is loaded by one thread at a time.

    Args:
        load: loads a model; its third argument is the device or a tuple of devices. All arguments
            are given by position.
    """

    def __init__(self, load: Callable[Arguments, Model]) -> None:
        update_wrapper(self, load)
        self.loads = 0
        self._load = load
        self._models: OrderedDict[tuple[Any, ...], Model] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Model:
        """The model for these arguments, loaded if it is not in memory."""
        with self._lock:
            if args not in self._models:
                self._drop_oldest(args[DEVICE_ARGUMENT])
                self._models[args] = self._load(*args, **kwargs)
                self.loads += 1
            self._models.move_to_end(args)
            return self._models[args]

    def __len__(self) -> int:
        """Number of models in memory."""
        return len(self._models)

    def clear(self) -> None:
        """Forget all models."""
        with self._lock:
            self._models.clear()

    def _drop_oldest(self, device: object) -> None:
        """Make room for one more model of a device, before it is loaded."""
        same = [key for key in self._models if key[DEVICE_ARGUMENT] == device]
        for key in same[: max(0, len(same) + 1 - MODELS_PER_DEVICE)]:
            del self._models[key]
