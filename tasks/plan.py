"""Plan: the prompts of the table that no shard has yet, put into shards."""

from __future__ import annotations

from prefect import task

from rudalle_lib.config import RunConfig
from rudalle_lib.planning import Plan, plan_run
from rudalle_lib.storage import Storage
from tasks.options import OPTIONS


@task(name="plan", **OPTIONS)
def plan(config: RunConfig) -> Plan:
    """Append the table's new prompts to the plan, and write the rejects of the table."""
    return plan_run(config, Storage(config.output))
