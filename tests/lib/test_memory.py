"""Memory that runs out makes batches smaller, and at last an error that says what to do."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rudalle_lib.errors import OutOfMemoryError
from rudalle_lib.memory import clear_out_of_memory, in_fitting_batches, is_out_of_memory


class Room:
    """Works on at most `most` things at once; remembers what it was asked for."""

    def __init__(self, most: int) -> None:
        self.most, self.asked = most, list[int]()

    def work(self, batch: Sequence[int]) -> list[int]:
        self.asked.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")
        return [10 * index for index in batch]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 16])
def test_everything_is_worked_on_once_and_in_order(most: int) -> None:
    room = Room(most)
    batches = [range(0, 8), range(8, 16), range(16, 19)]
    made = list(in_fitting_batches(batches, room.work, "it"))
    assert [index for batch, _ in made for index in batch] == list(range(19))
    assert [result for _, results in made for result in results] == list(range(0, 190, 10))


def test_later_batches_are_no_larger_than_what_fitted() -> None:
    room = Room(3)
    list(in_fitting_batches([range(8), range(8), range(8)], room.work, "it"))
    assert room.asked == [8, 4, *[2] * 12]


def test_one_thing_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(OutOfMemoryError) as raised:
        list(in_fitting_batches([range(4)], Room(0).work, "decoding a single picture"))
    message = str(raised.value)
    assert message.startswith("There is not enough memory for decoding a single picture. Free some")
    assert "runtime.devices" in message and message.endswith("allocate 2.00 GiB.)")


def test_other_errors_stay_what_they_are() -> None:
    def broken(_: Sequence[int]) -> None:
        raise RuntimeError("sizes differ")

    with pytest.raises(RuntimeError, match="sizes differ"):
        list(in_fitting_batches([range(4)], broken, "it"))
    with pytest.raises(RuntimeError, match="sizes differ"), clear_out_of_memory("it"):
        raise RuntimeError("sizes differ")


def test_allocations_that_fail_are_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    assert is_out_of_memory(raised.value)
    expected = pytest.raises(OutOfMemoryError, match="not enough memory for this")
    with expected, clear_out_of_memory("this"):
        torch.empty(2**50)
    assert not is_out_of_memory(RuntimeError("sizes differ"))


LIMITED = """
import resource, sys
import torch
from pathlib import Path
from rudalle_lib.images import decode_image
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.records import TokensRecord
from tasks.decode import _decode_batch
from rudalle_lib.memory import in_fitting_batches

torch.set_num_threads(1)
config = VqGanConfig(resolution=32, ch=8, ch_mult=(1, 1, 1, 2), num_res_blocks=1,
    attention_resolutions=(4,), z_channels=8, embed_dim=8, n_embed=32, norm_groups=4)
torch.manual_seed(0)
model = VqGan(config).eval()
rows = [TokensRecord(str(i), "p", i, 0, [(i + j) % 32 for j in range(16)], 0.0, 1.0, 1.0, 0, 1.0,
    False, 1.0, 4, 4, None, None) for i in range(2000)]
work = lambda batch: _decode_batch(model, rows, torch.device("cpu"), batch)
with torch.inference_mode():
    few = work(range(8))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 96 * 2**20,) * 2)
    sizes, made = [], []
    for batch, pictures in in_fitting_batches([range(2000)], work, "decoding"):
        sizes.append(len(batch))
        made += pictures
assert [row.image_id for row in made] == [row.image_id for row in rows]
same = all((decode_image(a.picture).int() - decode_image(b.picture).int()).abs().max() <= 1
    for a, b in zip(made, few))
print(max(sizes), same)
"""


def test_a_process_that_may_not_have_more_memory_goes_on_with_smaller_batches() -> None:
    """A real limit of the kernel, the real network: 2,000 pictures at once cannot fit."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    largest, same = done.stdout.split()
    assert 1 <= int(largest) < 2000 and same == "True"
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
