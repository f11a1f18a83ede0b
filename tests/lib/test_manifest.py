"""Fingerprints change with what a stage would make; manifests are whole or absent."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from rudalle_lib import layout
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import ShardError
from rudalle_lib.manifest import (
    fingerprint,
    finished_shards,
    is_done,
    package_versions,
    read_run_manifest,
    read_shard_manifest,
    read_shard_manifests,
    totals,
    write_run_manifest,
    write_shard_manifest,
)
from rudalle_lib.records import DataFile, RunManifest, RunTotals, ShardManifest, StageArtifact
from rudalle_lib.storage import Storage


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


def test_everything_that_counts_changes_the_fingerprint() -> None:
    base = {"stage": "generate", "version": 1, "settings": {"top_k": 1, "seed": 0}}
    prints = {
        fingerprint(**{**base, **change}, upstream=upstream, weights=weights)
        for change, upstream, weights in [
            ({}, "u", "w"),
            ({"stage": "decode"}, "u", "w"),
            ({"version": 2}, "u", "w"),
            ({"settings": {"top_k": 2, "seed": 0}}, "u", "w"),
            ({}, "v", "w"),
            ({}, ["u", "v"], "w"),
            ({}, ["v", "u"], "w"),
            ({}, "u", "x"),
            ({}, "u", None),
        ]
    }
    assert len(prints) == 9


def test_the_order_of_settings_does_not_count() -> None:
    one = fingerprint("score", 1, {"a": 1, "b": 2}, "u")
    assert one == fingerprint("score", 1, {"b": 2, "a": 1}, ["u"])
    assert len(one) == 32


def test_an_artifact_is_done_only_if_whole_and_of_the_same_fingerprint(storage: Storage) -> None:
    path = layout.stage_path("score", 0)
    assert not is_done(storage, path, "abc")
    content = storage.write_table(path, pa.table({"a": [1]}), {"fingerprint": "abc"})
    assert is_done(storage, path, "abc")
    assert not is_done(storage, path, "abd")
    storage.write_bytes(path, content[:-9])
    assert not is_done(storage, path, "abc")


def test_a_shard_manifest_comes_back(storage: Storage) -> None:
    assert read_shard_manifest(storage, 0) is None
    assert finished_shards(storage) == []
    write_shard_manifest(storage, shard(storage, 12))
    write_shard_manifest(storage, shard(storage, 3))
    assert read_shard_manifest(storage, 12) == shard(storage, 12)
    assert finished_shards(storage) == [3, 12]
    assert [item.index for item in read_shard_manifests(storage)] == [3, 12]


def test_a_manifest_names_no_place_on_this_machine(storage: Storage) -> None:
    write_shard_manifest(storage, shard(storage))
    content = storage.read_bytes("shards/00000.json").decode()
    assert json.loads(content)["stages"]["score"]["uri"] == "stages/score/00000.parquet"
    assert storage.url() not in content


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b"{", b'{"stages": {"a": 1}}', b"\xff"]
)
def test_what_is_not_a_manifest_is_named(storage: Storage, content: bytes) -> None:
    storage.write_bytes("shards/00000.json", content)
    storage.write_bytes("run.json", content)
    with pytest.raises(ShardError, match=r"shards/00000.json is not a shard manifest.*delete it"):
        read_shard_manifest(storage, 0)
    with pytest.raises(ShardError, match=r"run.json is not a run manifest"):
        read_run_manifest(storage)


def test_a_run_manifest_comes_back(storage: Storage) -> None:
    assert read_run_manifest(storage) is None
    manifest = run(totals([shard(storage, 0), shard(storage, 1)], {"duplicate": 2}))
    write_run_manifest(storage, manifest)
    # Through JSON once: tuples in the config have become lists.
    assert read_run_manifest(storage) == replace(
        manifest, config=json.loads(json.dumps(manifest.config))
    )


def test_totals_are_sums() -> None:
    storage = Storage("memory://totals")
    found = totals([shard(storage, 0), shard(storage, 1)], {"duplicate": 2, "below_threshold": 1})
    assert found == RunTotals(
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


def test_names_of_files_lead_back_to_their_shard() -> None:
    assert layout.index_of(layout.plan_path(7)) == 7
    assert layout.index_of(layout.shard_manifest_path(123_456)) == 123_456
    assert layout.index_of("rejects/plan-0123abcd.parquet") is None
    assert layout.index_of("plan/notes.txt") is None
    assert layout.image_path(1, "a-000", "jpeg") == "data/images/00001/a-000.jpg"
