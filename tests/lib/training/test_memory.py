"""The memory of a training: what is predicted is what a process takes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.models.dalle import DalleConfig
from rudalle_lib.training import memory
from rudalle_lib.training.memory import RESERVE, largest_batch, peak_bytes
from tests.support.tiny_training import CONFIG, settings

SMALL = DalleConfig(4, 512, 8, 2032, 32, 2048, 16, 16)
"""Large enough that its tensors count, and small enough to learn for a second."""

IMAGES = 8
"""Images at once."""

MEASURE = """
import gc
import torch
from tests.support.tiny_training import CONFIG, settings, tiny_examples
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.training.decoder import DecoderTask, TensorExamples

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def steps(config, training, count):
    shapes = {{"text": config.text_length, "image": config.image_length}}
    batch = {{n: torch.ones({images}, k, dtype=torch.int64) for n, k in shapes.items()}}
    task = DecoderTask(Dalle(config), TensorExamples(batch), training)
    (optimizer,) = task.optimizers(training)
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=training.dtype == "bfloat16"):
            loss = task.losses(task.model, batch, 0)["loss"]
        loss.backward()
        optimizer.step()

training = settings(**{changes})
steps(CONFIG, training, 1)  # what PyTorch loads with the first step is no memory of tensors
gc.collect()
before = status("VmRSS")
steps({config}, training, 2)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"dtype": "float32", "gradient_checkpointing": True}, marks=pytest.mark.slow),
        {"dtype": "bfloat16", "method": "lora"},
    ],
)
def test_the_formula_is_within_a_tenth_of_what_a_process_takes(changes: dict[str, Any]) -> None:
    code = MEASURE.format(changes=changes, config=SMALL, images=IMAGES)
    # Freed tensors go back to the system at once, as in `training.launch`; these are only smaller.
    environment = {
        **os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    taken = int(
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=True
        ).stdout
    )
    assert peak_bytes(SMALL, settings(**changes), IMAGES) == pytest.approx(taken, rel=0.1)


def test_what_saves_memory_takes_less() -> None:
    whole = peak_bytes(CONFIG, settings(), 8)
    assert peak_bytes(CONFIG, settings(), 16) > whole
    assert peak_bytes(CONFIG, settings(average=0.9), 8) > whole
    assert peak_bytes(CONFIG, settings(gradient_checkpointing=True), 8) < whole
    wide = replace(CONFIG, hidden_size=256)
    assert peak_bytes(wide, settings(method="lora"), 1) < peak_bytes(wide, settings(), 1)


@pytest.mark.parametrize("images", [1, 2, 3, 20, 256])
@pytest.mark.parametrize("kink", [0, 10])
def test_the_largest_batch_fits_and_one_image_more_does_not(
    images: int, kink: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a few images take nothing, because the step of the optimizer takes more."""
    tried: list[int] = []

    def peak(config: DalleConfig, training: TrainingConfig, count: int) -> int:
        tried.append(count)
        return 1000 + 10 * max(0, count - kink)

    monkeypatch.setattr(memory, "peak_bytes", peak)
    room = 1000 + 10 * max(0, images - kink) + 5
    expected = max(images, kink)
    assert largest_batch(CONFIG, settings(), math.ceil(room / (1 - RESERVE))) == expected
    assert len(set(tried)) <= 12
    assert largest_batch(CONFIG, settings(), 1000) == 0


def test_the_largest_batch_follows_the_formula() -> None:
    room = int(peak_bytes(CONFIG, settings(), 3) / (1 - RESERVE)) + 1000
    assert largest_batch(CONFIG, settings(), room) == 3
