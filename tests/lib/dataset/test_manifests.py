"""Manifests survive storage, and damaged ones are clear errors."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import (
    adopt_manifests,
    delete_shard_manifests,
    finished_shards,
    no_run_error,
    package_versions,
    read_run_manifest,
    read_shard_manifest,
    read_shard_manifests,
    require_run_manifest,
    sealed_json,
    totals,
    write_run_manifest,
    write_shard_manifest,
)
from rudalle_lib.errors import ShardError, StorageError
from rudalle_lib.schema.records import (
    DataFile,
    RunManifest,
    RunTotals,
    ShardManifest,
    StageArtifact,
)
from rudalle_lib.storage.storage import Storage


def shard(storage: Storage, index: int = 0) -> ShardManifest:
    artifact = StageArtifact(storage.url(layout.stage_path("score", index)), "f" * 32, 16, 1.5)
    return ShardManifest(
        index=index,
        fingerprint="a" * 32,
        config_digest="c" * 32,
        prompts=2,
        images=16,
        kept=5,
        rejected={"not_in_best_k": 10, "below_threshold": 1},
        image_bytes=1000,
        metadata=DataFile(layout.metadata_path(index), 10, "0" * 64),
        rejects=DataFile(layout.rejects_path(index), 20, "1" * 64),
        stages={"score": artifact},
        finished="2026-01-01T00:00:00Z",
    )


def run(totals: RunTotals) -> RunManifest:
    config = RunConfig()
    return RunManifest(
        name="run",
        config=config.public_dict(),
        config_digest=config.digest(),
        weights={"demo-dalle": "0" * 64},
        versions=package_versions(),
        shards_planned=3,
        totals=totals,
        started="2026-01-01T00:00:00Z",
        finished="2026-01-01T00:01:00Z",
    )


def test_a_shard_manifest_survives_storage(storage: Storage) -> None:
    assert read_shard_manifest(storage, 0) is None
    assert finished_shards(storage) == {}
    write_shard_manifest(storage, shard(storage, 12))
    write_shard_manifest(storage, shard(storage, 3))
    assert read_shard_manifest(storage, 12) == shard(storage, 12)
    assert finished_shards(storage) == {3: 0, 12: 0}
    assert [item.index for item in read_shard_manifests(storage)] == [3, 12]


def test_splits_and_their_archives_survive_storage(storage: Storage) -> None:
    archives = tuple(
        DataFile(layout.archive_path("parquet", 0, split=split), 5, "2" * 64)
        for split in ("train", "validation")
    )
    splits = {"train": 0.75, "validation": 0.25}
    write_shard_manifest(storage, replace(shard(storage), archives=archives, splits=splits))
    found = read_shard_manifest(storage, 0)
    assert found is not None and (found.archives, found.splits) == (archives, splits)


def test_the_archive_of_an_earlier_version_is_read(storage: Storage) -> None:
    archive = {"path": layout.archive_path("parquet", 0), "bytes": 5, "sha256": "2" * 64}
    write_shard_manifest(storage, shard(storage))
    data = json.loads(storage.read_bytes("shards/00000.json"))
    for key in ("archives", "splits", "seal"):
        del data[key]
    for former in (archive, None):
        storage.write_bytes("shards/00000.json", sealed_json({**data, "archive": former}))
        found = read_shard_manifest(storage, 0)
        assert found is not None and found.splits == {}
        assert found.archives == ((DataFile(**archive),) if former else ())  # type: ignore[arg-type]


def test_the_manifest_of_the_highest_term_is_valid(storage: Storage) -> None:
    """The others are of a holder of the lease that was taken over, and may still be alive."""
    earlier, later = shard(storage), replace(shard(storage), term=2, kept=7)
    write_shard_manifest(storage, later)
    write_shard_manifest(storage, earlier)
    assert storage.list("shards") == ["shards/00000-2.json", "shards/00000.json"]
    assert finished_shards(storage) == {0: 2}
    assert read_shard_manifest(storage, 0) == read_shard_manifest(storage, 0, 5) == later
    assert read_shard_manifests(storage) == [later]
    delete_shard_manifests(storage, 0, 1)
    assert storage.list("shards") == ["shards/00000-2.json"]


def test_a_takeover_adopts_what_is_finished(storage: Storage) -> None:
    manifests = [shard(storage, index) for index in range(3)]
    for manifest in manifests:
        write_shard_manifest(storage, manifest)
    storage.write_bytes("shards/00001.json", b"{}")  # damaged: made again
    adopt_manifests(storage, 1)
    assert finished_shards(storage) == {0: 1, 1: 0, 2: 1}
    before = {path: storage.read_bytes(path) for path in storage.list()}
    adopt_manifests(storage, 1)
    assert {path: storage.read_bytes(path) for path in storage.list()} == before
    write_shard_manifest(storage, replace(manifests[0], kept=99))  # by the earlier holder
    assert read_shard_manifest(storage, 0) == replace(manifests[0], term=1)


def test_a_manifest_contains_no_path_of_this_machine(storage: Storage) -> None:
    write_shard_manifest(storage, shard(storage))
    content = storage.read_bytes("shards/00000.json").decode()
    assert json.loads(content)["stages"]["score"]["uri"] == "stages/score/00000.parquet"
    assert storage.url() not in content


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b"{", b'{"stages": {"a": 1}}', b"\xff"]
)
def test_a_file_that_is_not_a_manifest_is_named(storage: Storage, content: bytes) -> None:
    storage.write_bytes("shards/00000.json", content)
    storage.write_bytes("run.json", content)
    with pytest.raises(ShardError, match=r"shards/00000.json is not a shard manifest.*delete it"):
        read_shard_manifest(storage, 0)
    with pytest.raises(ShardError, match=r"run.json is not a run manifest"):
        read_run_manifest(storage)


def test_damaged_manifests_can_be_reported_instead(storage: Storage) -> None:
    write_shard_manifest(storage, shard(storage, 0))
    storage.write_bytes("shards/00001.json", b"{}")
    reported: list[str] = []
    (manifest,) = read_shard_manifests(storage, reported.append)
    assert manifest.index == 0
    assert len(reported) == 1 and "shards/00001.json is not a shard manifest" in reported[0]
    with pytest.raises(ShardError):
        read_shard_manifests(storage)


def test_a_missing_run_is_a_clear_error(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"no finished run in .*expected run.json. Give the out"):
        require_run_manifest(storage)
    error = str(no_run_error(storage))
    assert f"There is no run in {storage.public_path()}: expected a folder plan/" in error
    write_run_manifest(storage, run(totals([])))
    assert require_run_manifest(storage).name == "run"


def test_a_run_manifest_survives_storage(storage: Storage) -> None:
    assert read_run_manifest(storage) is None
    manifest = run(totals([shard(storage, 0), shard(storage, 1)], {"duplicate": 2}))
    write_run_manifest(storage, manifest)
    # JSON turns tuples of the configuration into lists.
    assert read_run_manifest(storage) == replace(
        manifest, config=json.loads(json.dumps(manifest.config))
    )


def test_totals_are_sums() -> None:
    storage = Storage("memory://totals")
    sums = totals([shard(storage, 0), shard(storage, 1)], {"duplicate": 2, "below_threshold": 1})
    assert sums == RunTotals(
        shards=2,
        prompts=4,
        images=32,
        kept=10,
        rejected={"duplicate": 2, "below_threshold": 3, "not_in_best_k": 20},
        seconds={"score": 3.0},
        waiting={"score": 0.0},
        image_bytes=2000,
    )


def test_versions_are_recorded() -> None:
    assert {"python", "torch", "pyarrow"} <= set(package_versions())
