"""A process of a training, alone: its device, its share, and losses that cannot be split."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rudalle_lib.errors import SettingsError
from rudalle_lib.training.decoder import DecoderTask
from rudalle_lib.training.processes import Processes
from tests.support.tiny_training import settings, tiny_decoder, tiny_examples


def task_of(can_split: bool = True, **changes: object) -> DecoderTask:
    task = DecoderTask(tiny_decoder(), tiny_examples(), settings(**changes))
    task.can_split = can_split
    return task


def test_rows_are_split_into_parts_that_fit_into_memory() -> None:
    processes = Processes(task_of(), settings(images_at_once=4), "cpu")
    assert (processes.count, processes.index, processes.is_first) == (1, 0, True)
    assert [share.rows for share in processes.shares(6)] == [range(0, 3), range(3, 6)]
    assert [share.rows for share in processes.shares(3)] == [range(0, 3)]


def test_a_loss_of_the_whole_batch_is_not_split() -> None:
    assert Processes(task_of(can_split=False), settings(), "cpu").shares(6)[0].rows == range(6)
    with pytest.raises(SettingsError, match="DecoderTask needs all 6 images of a batch at once"):
        Processes(task_of(can_split=False), settings(images_at_once=2), "cpu")


@pytest.mark.parametrize(("dtype", "expected"), [("float32", None), ("bfloat16", "bfloat16")])
def test_losses_are_computed_under_the_autocast_of_the_settings(
    dtype: str, expected: str | None
) -> None:
    seen: list[torch.dtype | None] = []

    class Watched(DecoderTask):
        def losses(
            self, model: nn.Module, batch: dict[str, torch.Tensor], step: int
        ) -> dict[str, torch.Tensor]:
            seen.append(
                torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            )
            return super().losses(model, batch, step)

    training = settings(dtype=dtype)
    task = Watched(tiny_decoder(), tiny_examples(), training)
    losses = Processes(task, training, "cpu").losses(task.batch(0, range(2)), 0)
    assert set(losses) == {"loss", "text", "image"}
    assert seen == [getattr(torch, expected) if expected else None]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error() -> None:
    with pytest.raises(SettingsError, match="devices is cuda, and PyTorch finds no GPU"):
        Processes(task_of(), settings(), "cuda")
