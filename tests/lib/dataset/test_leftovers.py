"""What no manifest names any more is deleted, and nothing that no manifest ever named."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.leftovers import named_files, sweep_run, sweep_shard
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.storage.storage import Storage
from tests.support.damage import first_image, flip
from tests.support.finished_run import finish
from tests.support.image_records import VERSION

LEFT = [
    f"data/images/00000/{VERSION}/a-000.png",
    f"data/images/00000/{VERSION}-2/a-000.png",
    f"data/metadata/00000.{VERSION}.parquet",
    f"data/webdataset/00000.{VERSION}.tar",
    f"rejects/00000.{VERSION}.parquet",
    f"stages/decode/00000.{VERSION}-1.parquet",
]
"""Files of shard 0 that an interrupted run with other settings left."""

FOREIGN = [
    "data/images/00000/holiday.png",
    f"data/images/00000/{VERSION}/notes.txt",
    "data/images/00000/other/a-000.png",
    "data/metadata/00000.parquet",
    "data/metadata/00000.parquet.bak",
    "rejects/00000.csv",
    "stages/decode/00000.parquet",
    "stages/mine.parquet",
]
"""Files of somebody else, some of them with names that 0.1 gave."""


def contents(storage: Storage) -> dict[str, bytes]:
    return {path: storage.read_bytes(path) for path in storage.list() if "lease" not in path}


def sweep(storage: Storage, term: int = 2) -> None:
    sweep_shard(storage, 0, (), term)
    sweep_run(storage, read_shard_manifests(storage), term)


def test_what_an_interrupted_run_left_is_deleted_and_nothing_else(config: RunConfig) -> None:
    storage = Storage(config.output)
    before = contents(storage)
    assert named_files(storage, 0) < before.keys()
    for path in (*LEFT, *FOREIGN):
        storage.write_bytes(path, b"x")
    sweep(storage)
    assert contents(storage) == {**before, **dict.fromkeys(FOREIGN, b"x")}


def test_what_a_later_holder_of_the_lease_writes_is_kept(config: RunConfig) -> None:
    """A run that was paused while it swept goes on after another has taken over."""
    storage = Storage(config.output)
    before = contents(storage)
    for path in LEFT:
        storage.write_bytes(path, b"x")
    sweep(storage, term=0)
    later = [path for path in LEFT if f"{VERSION}-" in path]
    assert contents(storage) == {**before, **dict.fromkeys(later, b"x")}


def test_files_of_a_shard_without_a_manifest_are_kept(config: RunConfig) -> None:
    """Its run may go on, and find its stage artifacts."""
    storage = Storage(config.output)
    storage.delete("shards/00000.json")
    artifacts = storage.list("stages")
    sweep_run(storage, read_shard_manifests(storage))
    assert storage.list("stages") == artifacts


@pytest.mark.parametrize("form", ["files", "webdataset", "parquet"])
def test_other_settings_leave_no_file_of_the_earlier_ones(config: RunConfig, form: str) -> None:
    storage = Storage(config.output)
    publish = config.publish.model_copy(update={"format": form, "image_format": "webp"})
    finish(config.model_copy(update={"publish": publish}))
    manifests = read_shard_manifests(storage)
    named = {path for manifest in manifests for path in named_files(storage, manifest.index)}
    published = ("data/", "stages/", "rejects/")
    found = {path for path in storage.list() if path.startswith(published)}
    of_run = ("rejects/plan-", "data/images/metadata.parquet")
    assert found - named == {path for path in found if path.startswith(of_run)}
    assert storage.exists("data/images/metadata.parquet") == (form == "files")
    folders = (path for path in Path(config.output, "data/images").rglob("*") if path.is_dir())
    assert [path for path in folders if not any(path.iterdir())] == []


def test_a_damaged_manifest_names_nothing_and_its_shard_is_still_swept(config: RunConfig) -> None:
    storage = Storage(config.output)
    image = first_image(storage)
    flip("shards/00000.json")(storage)
    assert named_files(storage, 0) == set()
    finish(config)
    assert storage.exists(image)
    assert storage.list(f"data/images/00000/{VERSION}") == []


def test_a_link_in_the_output_is_never_followed(config: RunConfig, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "a-000.png").write_bytes(b"mine")
    storage = Storage(config.output)
    Path(config.output, "data/images/00000", VERSION).symlink_to(theirs)
    sweep(storage)
    assert (theirs / "a-000.png").read_bytes() == b"mine"
