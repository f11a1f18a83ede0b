"""Report: run manifest, dataset card, contact sheet and gallery of all finished shards."""

from __future__ import annotations

from prefect import task

from rudalle_lib.config import RunConfig
from rudalle_lib.records import RunManifest
from rudalle_lib.report import write_report
from rudalle_lib.storage import Storage
from tasks.options import OPTIONS


@task(name="report", **OPTIONS)
def report(
    config: RunConfig, weights: dict[str, str], shards_planned: int, started: str
) -> RunManifest:
    """Write what people look at, `run.json` last."""
    return write_report(Storage(config.output), config, weights, shards_planned, started)
