"""Finished shards as pandas tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.config.sections import PublishConfig
from rudalle_lib.dataset.frames import read_images, read_rejects
from rudalle_lib.dataset.manifests import write_shard_manifest
from rudalle_lib.dataset.rejects import write_rejects
from rudalle_lib.dataset.writer import write_shard
from rudalle_lib.errors import StorageError
from rudalle_lib.schema.records import ShardManifest, reject
from rudalle_lib.storage.storage import Storage
from tests.support.image_records import VERSION, images


def finish_shard(storage: Storage, index: int, *ids: tuple[str, int]) -> None:
    written = write_shard(storage, index, VERSION, iter(images(*ids)), PublishConfig())
    rejects = write_rejects(
        storage,
        index,
        VERSION,
        [reject("below_threshold", "0.1 < 0.2", stage="score", prompt_id="c", image_id="c-000")],
    )
    write_shard_manifest(
        storage,
        ShardManifest(
            index=index,
            fingerprint="f",
            config_digest="d",
            prompts=2,
            images=len(ids) + 1,
            kept=len(ids),
            rejected={"below_threshold": 1},
            image_bytes=1,
            metadata=written.metadata,
            rejects=rejects,
            stages={},
            finished="2026-01-01T00:00:00+00:00",
        ),
    )


def test_images_of_all_finished_shards(storage: Storage) -> None:
    finish_shard(storage, 0, ("a", 0), ("a", 5))
    finish_shard(storage, 1, ("b", 1))
    write_shard(storage, 2, VERSION, iter(images(("d", 0))), PublishConfig())  # no manifest
    frame = read_images(storage.url())
    assert list(frame.index) == ["a-000", "a-005", "b-001"]
    assert frame.loc["a-005", "text_ru"] == "красный круг"
    assert frame["seed"].tolist() == [2**62] * 3
    assert list(read_images(storage.url(), ["score"]).columns) == ["score"]


def test_rejects_with_their_reasons(storage: Storage) -> None:
    assert read_rejects(storage.url()).empty
    finish_shard(storage, 0, ("a", 0))
    (row,) = read_rejects(storage.url()).to_dict("records")
    assert (row["image_id"], row["reason"]) == ("c-000", "below_threshold")


def test_no_finished_shard_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="found no finished shard"):
        read_images(str(tmp_path))
