"""If memory runs out, batches become smaller, and at last an error says what to do."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rudalle_lib.errors import OutOfMemoryError
from rudalle_lib.runtime import memory
from rudalle_lib.runtime.memory import in_fitting_batches, is_out_of_memory, translate_out_of_memory


class LimitedDevice:
    """Processes at most `capacity` items at a time, and records the batch sizes it was given."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.batch_sizes = capacity, list[int]()

    def work(self, batch: Sequence[int]) -> list[int]:
        self.batch_sizes.append(len(batch))
        if len(batch) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")
        return [10 * index for index in batch]


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 16])
def test_every_item_is_processed_once_and_in_order(capacity: int) -> None:
    batches = [range(0, 8), range(8, 16), range(16, 19)]
    made = list(in_fitting_batches(batches, LimitedDevice(capacity).work, "it"))
    assert [index for batch, _ in made for index in batch] == list(range(19))
    assert [result for _, results in made for result in results] == list(range(0, 190, 10))


@pytest.mark.parametrize(
    "message",
    [
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "GET was unable to find an engine to execute this computation",
        "CUDA error: out of memory",
    ],
)
def test_signs_of_too_little_memory_of_a_gpu(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))


def test_captured_steps_give_way_to_image_networks_if_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released: list[torch.device] = []
    monkeypatch.setattr(memory, "release", released.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5, 100))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 60)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 60 + 5)
    memory.make_room_for_images(gpu)
    memory.make_room_for_images(torch.device("cpu"))
    assert released == [], "a tenth is free: by the driver, or cached by PyTorch"
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 60 + 4)
    memory.make_room_for_images(gpu)
    assert released == [gpu]


def test_later_batches_are_no_larger_than_what_fitted() -> None:
    device = LimitedDevice(3)
    list(in_fitting_batches([range(8), range(8), range(8)], device.work, "it"))
    assert device.batch_sizes == [8, 4, *[2] * 12]


def test_one_item_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(OutOfMemoryError) as raised:
        list(in_fitting_batches([range(4)], LimitedDevice(0).work, "decoding a single image"))
    message = str(raised.value)
    assert message.startswith("There is not enough memory for decoding a single image. Free some")
    assert "runtime.devices" in message and message.endswith("allocate 2.00 GiB.)")


def test_other_errors_are_not_changed() -> None:
    def broken(_: Sequence[int]) -> None:
        raise RuntimeError("sizes differ")

    with pytest.raises(RuntimeError, match="sizes differ"):
        list(in_fitting_batches([range(4)], broken, "it"))
    with pytest.raises(RuntimeError, match="sizes differ"), translate_out_of_memory("it"):
        raise RuntimeError("sizes differ")


def test_allocations_that_fail_are_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    assert is_out_of_memory(raised.value)
    expected = pytest.raises(OutOfMemoryError, match="not enough memory for this")
    with expected, translate_out_of_memory("this"):
        torch.empty(2**50)
    assert not is_out_of_memory(RuntimeError("sizes differ"))


LIMITED = """
import resource, sys
import torch
from pathlib import Path
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.images.decoding import decode_rows
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.schema.records import TokensRecord

torch.set_num_threads(1)
config = VqGanConfig(resolution=32, ch=8, ch_mult=(1, 1, 1, 2), num_res_blocks=1,
    attention_resolutions=(4,), z_channels=8, embed_dim=8, n_embed=32, norm_groups=4)
torch.manual_seed(0)
model = VqGan(config).eval()
rows = [TokensRecord(str(i), "p", i, 0, [(i + j) % 32 for j in range(16)], 0.0, 1.0, 1.0, 0, 1.0,
    False, 1.0, 4, 4, None, None) for i in range(2000)]
few = decode_rows(model, rows[:8], 8).rows()
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 96 * 2**20,) * 2)
finished = [0]
made = decode_rows(model, rows, 2000, lambda done, total: finished.append(done)).rows()
assert [row.image_id for row in made] == [row.image_id for row in rows]
same = all((decode_image(a.image).int() - decode_image(b.image).int()).abs().max() <= 1
    for a, b in zip(made, few))
print(max(b - a for a, b in zip(finished, finished[1:])), same)
"""


def test_a_process_at_its_memory_limit_continues_with_smaller_batches() -> None:
    """A real kernel limit and the real network: a batch of 2,000 images cannot fit."""
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    largest, same = done.stdout.split()
    assert 1 <= int(largest) < 2000 and same == "True"
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
