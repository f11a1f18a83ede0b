"""Report: run manifest, dataset card, contact sheet and gallery of all finished shards."""

from __future__ import annotations

from prefect import task

from rudalle_lib.config import RunConfig
from rudalle_lib.lease import check
from rudalle_lib.records import RunManifest
from rudalle_lib.report import write_report
from rudalle_lib.storage import Storage
from tasks.options import OPTIONS


@task(name="report", **OPTIONS)
def report(
    config: RunConfig,
    weights: dict[str, str],
    shards_planned: int,
    started: str,
    lease: int | None = None,
) -> RunManifest:
    """Write what people look at, `run.json` last; only for who holds the lease, if one is given."""
    storage = Storage(config.output)
    if lease is not None:
        check(storage, lease)
    return write_report(storage, config, weights, shards_planned, started)
