"""Drawing batches with captured steps, which are kept for later batches of the same network.

A captured step holds the caches of all its rows, gigabytes for large batches. Between batches it
waits here, so that later batches and shards neither allocate nor capture again. `release` frees it
when other networks need the memory, and so does the network when it is freed.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rudalle_lib.models.dalle import Dalle
from rudalle_lib.models.gpu.draw_settings import DrawSettings
from rudalle_lib.models.gpu.graph import CapturedFunction
from rudalle_lib.models.gpu.image_groups import group_rows
from rudalle_lib.models.layers import triton_support

if TYPE_CHECKING:  # it imports Triton, which a CPU build of PyTorch does not bring
    from rudalle_lib.models.gpu.step import DecoderStep, Room

LOGGER = logging.getLogger(__name__)

MAX_HEAD_WIDTH = 256
"""Widest heads that the attention kernel can hold in registers."""

ROOM_STEP = 16
"""Texts and groups are reserved in steps of so many, so that most batches fit into the first step
that was captured."""


@dataclass(frozen=True)
class DrawRequest:
    """The images of a batch.

    Attributes:
        text: int64 [P, text_length], text ids of the prompts, 0 = pad.
        prompt_of: the prompt of each row: first the images, then those of the empty text.
        settings: how each image is drawn, on any device.
    """

    text: Tensor
    prompt_of: Sequence[int]
    settings: DrawSettings


@dataclass(frozen=True)
class _Captured:
    """A step, the function that runs it, and where it found the weights in memory."""

    step: DecoderStep
    advance: CapturedFunction
    weights: tuple[int, ...]


_waiting: WeakKeyDictionary[Dalle, _Captured] = WeakKeyDictionary()
"""Captured steps that no batch uses. A batch takes a step out and puts it back when it has ended
well, so two threads never share one."""

_changing = threading.Lock()
"""Held while `_waiting` is changed: one thread draws while another one frees memory for images."""


class StepDrawer:
    """Draws the tokens of one batch, step by step, with a captured step of fixed size.

    Args:
        model: the network; `obstacle` must be None.
        request: the images.
        rows: rows of the step; the result of an image does not depend on the other rows, but in its
            last bits on their number.
    """

    def __init__(self, model: Dalle, request: DrawRequest, rows: int) -> None:
        self._model, self._request = model, request
        self._images = len(request.settings.seeds)
        self._captured = _take(model, request, max(rows, len(request.prompt_of)))

    def draw(self, step: int) -> None:
        """Draw the token of this number of each image: 0, 1, 2 and so on."""
        captured, request = self._captured, self._request
        with on_device(captured.step.device):
            if step:
                captured.advance()
            else:
                captured.step.start(self._model, request.text, request.prompt_of, request.settings)

    def result(self) -> tuple[Tensor, Tensor]:
        """The tokens, int64, and their log-probabilities, float32, [B, H * W]; called last."""
        tokens, logprobs, _ = self._captured.step.drawn
        drawn = tokens[: self._images].clone(), logprobs[: self._images].clone()
        with _changing:
            _waiting[self._model] = self._captured
        return drawn


def _take(model: Dalle, request: DrawRequest, rows: int) -> _Captured:
    """A step with room for a batch: the one that waits, or a new one."""
    from rudalle_lib.models.gpu.step import DecoderStep, Room

    groups = len(group_rows(request.prompt_of))
    room = Room(rows, _rounded(len(request.text)), _rounded(groups))
    with _changing:
        found = _waiting.pop(model, None)
    weights = _addresses(model)
    if found is not None and found.weights != weights:
        found = None  # the network was moved, and a graph reads its weights where they were
    if found is not None and _fits(room, found.step.room):
        return found
    if found is not None and found.step.room.rows == rows:  # what has been needed will be again
        room = Room(
            rows, *(max(sizes) for sizes in zip(room[1:], found.step.room[1:], strict=True))
        )
    del found  # its memory is needed for the new one
    step = DecoderStep(model, room)
    return _Captured(step, CapturedFunction(step.advance, step.device), weights)


def _addresses(model: Dalle) -> tuple[int, ...]:
    """Where the weights of a network are in memory."""
    held = itertools.chain(model.parameters(), model.buffers())
    return tuple(one.data_ptr() for one in held if one.layout == torch.strided)


def _fits(room: Room, existing: Room) -> bool:
    return (
        room.rows == existing.rows
        and room.prompts <= existing.prompts
        and room.groups <= existing.groups
    )


def _rounded(count: int) -> int:
    return -(-count // ROOM_STEP) * ROOM_STEP


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current device, on which Triton launches; does nothing for a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def release(device: torch.device | None = None) -> None:
    """Free captured steps that wait for their next batch.

    Args:
        device: only those on this device; None is all.
    """
    with _changing:
        for model, captured in list(_waiting.items()):
            if device is None or captured.step.device == device:
                _waiting.pop(model, None)


def obstacle(model: Dalle) -> str | None:
    """Why this network cannot be drawn with captured steps, in words; None if it can."""
    devices = {parameter.device for parameter in model.parameters()}
    config = model.config
    return obstacle_on(devices, config.hidden_size // config.num_heads)


def obstacle_on(devices: set[torch.device], head_width: int) -> str | None:
    """Why a network with heads of this width on these devices cannot be drawn, in words."""
    if {device.type for device in devices} != {"cuda"}:
        return "it is not on a GPU"
    if len(devices) > 1:
        return "its layers are spread over several GPUs (runtime.split_decoder)"
    if head_width > MAX_HEAD_WIDTH:
        return f"its heads are wider than {MAX_HEAD_WIDTH}"
    return triton_support.obstacle(*devices)


def can_draw(model: Dalle) -> bool:
    """Whether `StepDrawer` can draw with a network. If one on a GPU cannot, the log says why."""
    reason = obstacle(model)
    if reason is not None and model.image_embeddings.weight.is_cuda:
        _tell(reason)
    return reason is None


@cache
def _tell(reason: str) -> None:
    """Log a reason once per process."""
    LOGGER.warning(
        "The decoder is drawn by PyTorch, operator by operator, which takes several times as long "
        "as with captured steps: %s",
        reason,
    )
