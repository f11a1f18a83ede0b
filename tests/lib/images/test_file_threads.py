"""Files are encoded and decoded beside a GPU, in order, and at once on a CPU."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rudalle_lib.images import file_threads
from rudalle_lib.images.codecs import decode_image, encode_for_stage, encode_image
from rudalle_lib.images.file_threads import (
    AT_ONCE,
    Pending,
    files_beside,
    files_of_machine,
    map_ahead,
    submit_all,
)
from rudalle_lib.images.rows import BATCHES_AHEAD, map_images
from rudalle_lib.schema.records import PixelsRecord

SIDE = 16


def row(index: int) -> PixelsRecord:
    """A row whose image is grey of this value."""
    image = encode_image(torch.full((3, SIDE, SIDE), index, dtype=torch.uint8))
    return PixelsRecord(f"{index}", "prompt", SIDE, SIDE, image)


def test_a_gpu_has_threads_beside_it_and_a_cpu_has_none() -> None:
    assert files_beside(torch.device("cpu")) is AT_ONCE
    assert files_beside(torch.device("cuda", 0)) is files_beside(torch.device("cuda", 1))
    assert files_beside(torch.device("cuda", 0)) is not AT_ONCE
    assert files_of_machine() is AT_ONCE, "this machine has no GPU"


def test_the_network_goes_on_while_its_images_are_encoded() -> None:
    go_on = threading.Event()

    def encode(number: int) -> int:
        assert go_on.wait(timeout=10)
        return -number

    with ThreadPoolExecutor(2) as threads:
        pending = Pending(submit_all(threads, encode, range(20)))  # returns before any is done
        go_on.set()
        assert pending.rows() == [-number for number in range(20)]


def test_what_is_done_at_once_is_finished_and_fails_where_it_was_asked_for() -> None:
    assert AT_ONCE.submit(lambda: 7).done()
    with pytest.raises(ZeroDivisionError):
        AT_ONCE.submit(lambda: 1 // 0)


@pytest.mark.parametrize("ahead", [0, 3, 100])
def test_results_of_a_map_are_in_order_and_few_are_ahead(ahead: int) -> None:
    started: list[int] = []
    with ThreadPoolExecutor(4) as threads:
        results = map_ahead(threads, started.append, range(50), ahead)
        next(results)
        assert len(started) <= ahead + 2
        assert sum(1 for _ in results) == 49
    assert list(map_ahead(AT_ONCE, lambda item: -item, range(5))) == [0, -1, -2, -3, -4]


def test_an_error_in_a_thread_reaches_who_waits() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(ZeroDivisionError):
        Pending(submit_all(threads, lambda number: 1 // number, [1, 0])).rows()


def test_images_are_decoded_ahead_but_not_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    unpack = file_threads.AtOnce.submit  # decodes when submitted, so that it can be counted
    ahead = file_threads.AtOnce()

    def submit(fn: object, *args: object) -> object:
        decoded.append(args[0].image_id)  # type: ignore[attr-defined]
        return unpack(ahead, fn, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ahead, "submit", submit)
    rows, seen, counts = [row(index) for index in range(20)], [], []

    def work(batch: object, images: torch.Tensor) -> list[int]:
        counts.append(len(decoded))
        seen.append(images[:, 0, 0, 0].tolist())
        return seen[-1]

    made = map_images(rows, 3, work, "testing an image", files=ahead)
    assert made == list(range(20)) and decoded == [one.image_id for one in rows]
    assert counts[0] == 3 * BATCHES_AHEAD + 3


def test_a_batch_that_does_not_fit_is_decoded_again() -> None:
    failures = iter([True, True, False, False])

    def work(batch: object, images: torch.Tensor) -> list[int]:
        if len(images) > 2 and next(failures):
            raise MemoryError
        values: list[int] = images[:, 0, 0, 0].tolist()
        return values

    with ThreadPoolExecutor(2) as threads:
        rows = [row(index) for index in range(9)]
        assert map_images(rows, 8, work, "testing an image", files=threads) == list(range(9))


def test_files_of_stages_are_larger_and_hold_the_same_pixels() -> None:
    image = (torch.rand(3, 64, 64) * 40).to(torch.uint8)
    fast, full = encode_for_stage(image), encode_image(image)
    assert torch.equal(decode_image(fast), decode_image(full)) and fast != full
