"""A run is paused before any of its writes, another takes over and finishes: nothing is mixed.

The pause is simulated: right before one write or deletion of the first run, the second run is made
as a whole, and then the first one goes on until it notices. The first run has other settings.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import lease as leases
from rudalle_lib.dataset.layout import image_table_path
from rudalle_lib.dataset.lease import acquire, check, hold
from rudalle_lib.dataset.lease_files import LeaseMark
from rudalle_lib.dataset.manifests import (
    adopt_manifests,
    read_shard_manifests,
    require_run_manifest,
)
from rudalle_lib.errors import LeaseLostError, StorageError
from rudalle_lib.pipeline.diff import compare
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.report.report import write_report
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish

CHANGES = ("_put", "commit", "create", "delete")
"""Methods of `Storage` that change files."""


def run(config: RunConfig, lease: LeaseMark) -> None:
    """A run that holds a lease, without Prefect."""
    from tasks.without_prefect import process_shard

    storage, weights = Storage(config.output), weight_digests(config)
    adopt_manifests(storage, lease.term)
    plan = plan_run(config, storage)
    finished = read_shard_manifests(storage)
    for shard in compare(config, weights, plan.shards, finished).todo:
        process_shard(config, weights, shard, lease)
    started, check_lease = "2026-01-01T00:00:00+00:00", partial(check, storage, lease)
    planned = len(plan.shards)
    write_report(storage, config, weights, planned, started, check_lease, lease.term)


def take_over(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acquire the lease as if it had expired, and finish."""
    with monkeypatch.context() as patch:
        patch.setattr(leases, "is_gone", lambda process: False)
        patch.setattr(leases, "_age", lambda storage, lease, now: lease.seconds + 1)
        lease = acquire(Storage(config.output), 60)
    assert lease.term == 1
    run(config, lease.mark)
    leases.free(Storage(config.output), lease.token)


def paused(
    at: int, then: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """Call `then` before the change of this number, counted from 0; returns what was changed."""
    changes: list[str] = []
    inside = False

    def wrap(name: str) -> Callable[..., Any]:
        method = getattr(Storage, name)

        def change(storage: Storage, path: str, *rest: Any) -> Any:
            nonlocal inside
            if inside:
                return method(storage, path, *rest)
            changes.append(f"{name} {path}")
            if len(changes) - 1 == at:
                inside = True
                then()
                inside = False
            return method(storage, path, *rest)

        return change

    for name in CHANGES:
        monkeypatch.setattr(Storage, name, wrap(name))
    return lambda: changes


@pytest.mark.parametrize("at", range(0, 40, 4))
def test_a_paused_run_mixes_nothing_into_the_dataset_of_its_successor(
    config: RunConfig, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(config.output)
    mine = config.model_copy(update={"publish": config.publish.model_copy(
        update={"image_format": "webp"})})  # fmt: skip
    other = config.model_copy(update={"score": config.score.model_copy(update={"keep_best": 1})})
    first = acquire(storage, 60)
    with monkeypatch.context() as patch:
        changed = paused(at, lambda: take_over(other, monkeypatch), patch)
        with suppress(LeaseLostError, StorageError):
            run(mine, first.mark)
    assert len(changed()) > at, "the first run is shorter: choose fewer numbers"
    audit = audit_output(storage)
    if audit.faults:  # what only the report or a late manifest shows is found, and mended by a run
        report = ("README.md", "contact_sheet.png", "gallery/", "run.json", image_table_path())
        allowed = (*report, "shards/")
        serious = [fault for fault in audit.faults if fault.kind != "orphan"]
        assert all(fault.path.startswith(allowed) for fault in serious), serious
        finish_again(other)
    audit = audit_output(storage)
    assert audit.faults == [] and audit.as_recorded == {0, 1, 2}, audit.notes
    assert require_run_manifest(storage).config["score"]["keep_best"] == 1
    undisturbed = other.model_copy(update={"output": f"{config.output}-undisturbed"})
    finish(undisturbed)
    assert digests(storage) == digests(Storage(undisturbed.output))


def finish_again(config: RunConfig) -> None:
    with hold(Storage(config.output), 60) as holding:
        run(config, holding.mark)


def digests(storage: Storage) -> dict[str, str]:
    """The digest of every published image."""
    return {
        row["image_id"]: row["sha256"]
        for manifest in read_shard_manifests(storage)
        for row in storage.read_table(manifest.metadata.path).to_pylist()
    }
