"""Report: write run manifest, dataset card, contact sheet and gallery of all finished shards."""

from __future__ import annotations

from functools import partial

from prefect import task

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.lease import check
from rudalle_lib.dataset.lease_files import LeaseMark
from rudalle_lib.report.report import write_report
from rudalle_lib.schema.decisions import NOTHING_ELSE, SelectionRecord
from rudalle_lib.schema.records import RunManifest
from rudalle_lib.storage.storage import Storage
from tasks.runtime.options import OPTIONS


@task(name="report", **OPTIONS)
def report(
    config: RunConfig,
    weights: dict[str, str],
    shards_planned: int,
    started: str,
    lease: LeaseMark | None = None,
    selection: SelectionRecord = NOTHING_ELSE,
) -> RunManifest:
    """Write the report of a run, `run.json` last.

    Args:
        config: the run.
        weights: digests of the weights by stage.
        shards_planned: number of shards in the plan.
        started: when the run started, ISO 8601.
        lease: mark of the lease on the output, if one is held.
        selection: what decided which images are kept, beside the settings of `score`.

    Raises:
        LeaseError: another run has taken over the output.
    """
    storage = Storage(config.output)
    check_lease = (lambda: None) if lease is None else partial(check, storage, lease)
    term = 0 if lease is None else lease.term
    return write_report(
        storage, config, weights, shards_planned, started, check_lease, term, selection
    )
