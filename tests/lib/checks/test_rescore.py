"""Recomputed scores agree with the recorded ones, and show images that belong to other captions."""

from __future__ import annotations

import pytest

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.checks.faults import Audit
from rudalle_lib.checks.rescore import choose_sample, rescore_sample
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import UpscaleConfig
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.storage.storage import Storage
from tests.support.damage import Damage, artifact_of, deleted, exchange_images, flip, forged_column
from tests.support.finished_run import finish


def rescored(storage: Storage, size: int = 64) -> Audit:
    audit = audit_output(storage)
    rescore_sample(storage, audit, size)
    return audit


@pytest.mark.parametrize(
    ("kind", "words", "damage"),
    [
        ("score", "has score 0.5000, found ",
         forged_column("score", lambda scores: [0.5, *scores[1:]])),
        ("label", "it is not the image that the stages made", exchange_images),
    ],
)  # fmt: skip
def test_forged_scores_and_exchanged_images_are_found(
    config: RunConfig, kind: str, words: str, damage: Damage
) -> None:
    storage = Storage(config.output)
    damage(storage)
    assert [fault for fault in audit_output(storage).faults if fault.kind == kind] == []
    faults = rescored(storage).faults
    assert any(fault.kind == kind and words in fault.detail for fault in faults), faults
    assert {fault.shard for fault in faults} == {0}


def test_published_images_are_scored_if_the_drawn_ones_are_gone(config: RunConfig) -> None:
    # The tiny upscaler is not trained: its images score differently.
    finish(config.model_copy(update={"upscale": UpscaleConfig(model=None)}))
    storage = Storage(config.output)
    for index in range(3):
        deleted(artifact_of("decode", index))(storage)
    audit = rescored(storage)
    assert audit.faults == [] and audit.checked["pairs"] == 8
    forged_column("score", lambda scores: [0.9, *scores[1:]])(storage)
    assert [fault.kind for fault in rescored(storage).faults] == ["score"]


def test_images_in_another_format_are_compared_after_encoding(config: RunConfig) -> None:
    publish = config.publish.model_copy(update={"image_format": "webp"})
    finish(config.model_copy(update={"publish": publish}))
    audit = rescored(Storage(config.output))
    assert audit.faults == [] and audit.checked["pairs"] == 8


def test_the_sample_is_bounded_and_always_the_same(finished: RunConfig) -> None:
    storage = Storage(finished.output)
    manifests = read_shard_manifests(storage)

    def ids(size: int) -> list[str]:
        chosen = choose_sample(storage, manifests, size)
        assert [manifest.index for manifest, _ in chosen] == sorted(
            {manifest.index for manifest, _ in chosen}
        )
        return [row["image_id"] for _, rows in chosen for row in rows]

    assert ids(0) == []
    assert len(ids(3)) == 3 and ids(3) == ids(3)
    assert len(ids(64)) == len(set(ids(64))) == 8


def test_shards_with_faults_are_not_sampled(config: RunConfig) -> None:
    storage = Storage(config.output)
    before = rescored(storage).checked["pairs"]
    flip(artifact_of("generate"))(storage)
    assert 0 < rescored(storage).checked["pairs"] < before


def test_without_an_intact_run_manifest_nothing_is_scored(config: RunConfig) -> None:
    storage = Storage(config.output)
    flip("run.json")(storage)
    audit = rescored(storage)
    assert audit.checked["pairs"] == 0
    assert audit.notes == ["no score was recomputed: this requires an intact run.json"]
