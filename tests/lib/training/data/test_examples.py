"""Random access to encoded rows, and which are held out."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.dataset.splits import place_of
from rudalle_lib.errors import DamagedError
from rudalle_lib.generation.image_prompts import fit
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.encode import encode_data
from rudalle_lib.training.data.examples import Split, open_examples
from rudalle_lib.training.data.manifest import EncodedData
from tests.support.image_data import CAPTIONS, image_bytes, write_folder
from tests.support.tiny_stack import SIDE, TEXT_LENGTH

Tuning = Callable[..., FineTuneConfig]


def opened(config: FineTuneConfig, held_out: float = 0.0) -> Split:
    storage = Storage(config.output)
    return open_examples(storage, encode_data(config, storage), held_out)


def test_rows_of_a_decoder(tuning: Tuning, tmp_path: Path) -> None:
    examples = opened(tuning(write_folder(tmp_path / "mine"), encoding={"shard_size": 2})).train
    assert len(examples) == 5
    rows = examples.rows([4, 0, 4])
    assert {name: (value.dtype, tuple(value.shape)) for name, value in rows.items()} == {
        "text": (torch.int64, (3, TEXT_LENGTH)),
        "image": (torch.int64, (3, 16)),
    }
    assert torch.equal(rows["image"][0], rows["image"][2])
    assert not torch.equal(rows["image"][0], rows["image"][1])
    assert examples.captions(torch.tensor([1, 0])) == [f"{CAPTIONS[1]} 1", f"{CAPTIONS[0]} 0"]
    assert examples.rows([])["image"].shape == (0, 16)
    with pytest.raises(IndexError):
        examples.rows([5])


@pytest.mark.parametrize("trains", ["vqgan", "scorer"])
def test_rows_with_pixels(tuning: Tuning, tmp_path: Path, trains: str) -> None:
    config = tuning(write_folder(tmp_path / "mine"), trains=trains, encoding={"shard_size": 2})
    rows = opened(config).train.rows([3, 1])
    assert set(rows) == ({"image", "text"} if trains == "scorer" else {"image"})
    expected = [fit(decode_image(image_bytes(n)), SIDE, SIDE) for n in (3, 1)]
    assert rows["image"].dtype == torch.uint8
    assert torch.equal(rows["image"], torch.stack(expected))


def test_repeats_are_those_of_the_dataset_of_each_row(tuning: Tuning, tmp_path: Path) -> None:
    first, second = write_folder(tmp_path / "a", 3), write_folder(tmp_path / "b", 2, first=3)
    config = tuning({"uri": str(first), "repeats": 4}, second, encoding={"shard_size": 2})
    assert opened(config).train.repeats.tolist() == [4, 4, 4, 1, 1]


def test_the_copy_is_made_once_and_replaced_when_the_data_changes(
    tuning: Tuning, tmp_path: Path
) -> None:
    config = tuning(write_folder(tmp_path / "mine", 3))
    opened(config)
    (first,) = tmp_path.glob("out/cache/*.arrow")
    made = first.stat().st_mtime_ns
    before = opened(config)
    assert first.stat().st_mtime_ns == made
    write_folder(tmp_path / "mine", 1, first=3)
    assert len(opened(config).train) == 4
    (second,) = tmp_path.glob("out/cache/*.arrow")
    assert second != first and len(before.train.rows([0, 1, 2])["image"]) == 3


def test_a_damaged_shard_is_an_error(tuning: Tuning, tmp_path: Path) -> None:
    config = tuning(write_folder(tmp_path / "mine", 3))
    storage = Storage(config.output)
    data = encode_data(config, storage)
    path = tmp_path / "out" / data.shards[0].path
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DamagedError):
        open_examples(storage, data, 0.1)


def test_on_s3_the_copy_is_in_the_cache_of_the_user(
    tuning: Tuning, tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert len(opened(tuning(write_folder(tmp_path / "mine", 3), output=s3_url)).train) == 3
    assert len(list((tmp_path / "caches" / "rudalle-flows").rglob("*.arrow"))) == 1


# --- held out ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tiny_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, EncodedData]:
    """Sixty images of twenty captions, which differ in case and blanks from image to image."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(60):
        (folder / f"{number:02}.png").write_bytes(image_bytes(number, 32, 32))
        caption = f"круг {number % 20}"
        forms = (caption, caption.upper(), f"  {caption} \n")
        (folder / f"{number:02}.txt").write_text(forms[number // 20], encoding="utf-8")
    config = FineTuneConfig.model_validate({
        "output": str(tmp_path_factory.mktemp("out")),
        "data": [{"uri": str(folder)}],
        "weights": {"folder": str(tiny_stack), "offline": True},
        "encoding": {"shard_size": 7},
    })  # fmt: skip
    storage = Storage(config.output)
    return storage, encode_data(config, storage)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 0.5), larger=st.floats(0, 0.5))
def test_captions_are_on_one_side_and_a_larger_share_only_adds(
    many: tuple[Storage, EncodedData], share: float, larger: float
) -> None:
    share, larger = sorted((share, larger))
    sides = []
    for held_out in (share, larger):
        train, held = open_examples(*many, held_out)
        assert len(train) + len(held) == 60
        captions = [
            {caption.lower() for caption in side.captions(range(len(side)))}
            for side in (train, held)
        ]
        assert captions[0].isdisjoint(captions[1])
        assert all(place_of(caption) < held_out for caption in captions[1])
        assert all(place_of(caption) >= held_out for caption in captions[0])
        sides.append(captions[1])
    assert sides[0] <= sides[1]


def test_the_share_is_kept_over_many_captions() -> None:
    texts = [f"{random.Random(number).random()}" for number in range(20_000)]
    share = sum(place_of(text) < 0.05 for text in texts) / len(texts)
    assert abs(share - 0.05) < 0.005
