"""Plan: put the prompts of the table that are not in a shard yet into new shards."""

from __future__ import annotations

from collections.abc import Callable

from prefect import task

from rudalle_lib.config.run import RunConfig
from rudalle_lib.prompts.plan import Plan, plan_run
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import notice
from tasks.runtime.options import OPTIONS


@task(name="plan", **OPTIONS)
def plan(config: RunConfig, choose_size: Callable[[], int]) -> Plan:
    """Append the table's new prompts to the plan, and write the table's rejects.

    Args:
        config: the run.
        choose_size: chooses the prompts per shard, see `plan_run`.
    """
    return plan_run(config, Storage(config.output), choose_size=choose_size, notice=notice)
