"""Rows that repeat an earlier one are listed and not learnt from, wherever they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.duplicates import first_rows
from rudalle_lib.training.data.encode import Progress, encode_data
from rudalle_lib.training.data.examples import open_examples
from rudalle_lib.training.data.manifest import EncodedData
from tests.support.image_data import image_bytes, write_folder

Tuning = Callable[..., FineTuneConfig]


def encoded(config: FineTuneConfig) -> tuple[EncodedData, dict[str, str], int]:
    """The data, the duplicates with their details, and the number of shards that were reused."""
    storage, seen = Storage(config.output), [Progress(0, 0)]
    data = encode_data(config, storage, on_progress=seen.append)
    tables = [storage.read_table(shard.rejects) for shard in data.shards if shard.rejects]
    rows = [row for table in tables for row in table.to_pylist()]
    found = {f"{Path(r['source']).name}/{r['row']}": r for r in rows if r["reason"] == "duplicate"}
    count = sum(row["reason"] == "duplicate" for row in rows)
    assert count == data.rejected.get("duplicate", 0)
    return data, {name: row["detail"] for name, row in found.items()}, seen[-1].reused


def add(folder: Path, name: str, image: bytes, caption: str) -> None:
    """An image with a caption."""
    (folder / f"{name}.png").write_bytes(image)
    (folder / f"{name}.txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Datasets whose rows 003.png and 000.png, and b.png, repeat an earlier row."""
    first, second = write_folder(tmp_path / "one", 3), write_folder(tmp_path / "two", 1)
    add(first, "003", image_bytes(0), "  красный   круг 0\n")
    add(second, "a", image_bytes(5), "круг")
    add(second, "b", image_bytes(5), "круг")
    add(second, "c", image_bytes(5), "другой круг")
    add(second, "d", image_bytes(6), "круг")
    return first, second


@pytest.mark.parametrize("trains", ["decoder", "scorer"])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_an_earlier_row_with_the_same_caption_and_image_counts_and_no_other(
    tuning: Tuning, two: tuple[Path, Path], trains: str, size: int
) -> None:
    config = tuning(*two, trains=trains, encoding={"shard_size": size})
    data, found, _ = encoded(config)
    end = "; `repeats` sets the weight"
    assert found == {
        "one/003.png": f"the same image and caption as 000.png{end}",
        "two/000.png": f"the same image and caption as 000.png of {two[0]}{end}",
        "two/b.png": f"the same image and caption as a.png{end}",
    }
    assert [sum(shard.rows for shard in source.shards) for source in data.sources] == [3, 3]
    split = open_examples(Storage(config.output), data, 0)
    captions = split.train.captions(range(len(split.train)))
    assert captions[3:] == ["круг", "другой круг", "круг"] and len(captions) == data.rows


def test_a_vqgan_looks_at_images_alone(tuning: Tuning, two: tuple[Path, Path]) -> None:
    _, found, _ = encoded(tuning(*two, trains="vqgan"))
    assert set(found) == {"one/003.png", "two/000.png", "two/b.png", "two/c.png"}


def test_a_dataset_that_is_listed_twice_counts_once(tuning: Tuning, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", 3)
    again = {"uri": str(folder), "repeats": 2}
    config = tuning(folder, again, again, encoding={"shard_size": 2})
    data, found, _ = encoded(config)
    assert data.rows == 3 == len(found)
    assert data.rejected == {"duplicate": 6}


def test_what_is_a_duplicate_follows_other_shards_without_encoding_again(
    tuning: Tuning, two: tuple[Path, Path]
) -> None:
    config = tuning(*two, encoding={"shard_size": 2})
    before, _, _ = encoded(config)
    assert encoded(config)[0] == before
    (two[0] / "000.txt").write_text("другое", encoding="utf-8")
    data, found, reused = encoded(config)
    assert reused == len(data.shards) - 1
    assert set(found) == {"two/000.png", "two/b.png"}
    assert found["two/000.png"].startswith("the same image and caption as 003.png of ")
    assert data.digest() != before.digest()


@pytest.mark.parametrize("kinds", [1, 2, 50, 10_000])
def test_first_rows_are_those_of_a_plain_loop(kinds: int) -> None:
    chosen = np.random.default_rng(kinds).integers(0, kinds, 1000)
    digests = np.stack([chosen % 7, chosen // 7], 1).astype(np.uint64)
    seen: dict[int, int] = {}
    expected = [seen.setdefault(int(kind), row) for row, kind in enumerate(chosen)]
    assert first_rows(digests).tolist() == expected
    assert first_rows(digests[:0]).tolist() == []
