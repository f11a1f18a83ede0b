"""Generate shards of a dataset: any number of machines share one output, with nothing between them.

Each run takes a lease of its shards (`dataset.range_lease`), makes them like `generate_dataset`
does, and frees it. With `auto` it then takes further shards, until none are left. The run that
finishes last writes the report.

`generate_on_workers` starts such runs in a Prefect work pool.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from pydantic import Field

from flows.artifacts import RunArtifacts
from flows.generate_dataset import (
    ShardWork,
    check_once,
    choose_batch_size,
    choose_shard_size,
    name_run,
)
from flows.runners import Runner, start_runner
from rudalle_lib.checks.preflight import check_divisible
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.layout import ShardRange
from rudalle_lib.dataset.lease import HeldError, Holding, free, hold, keep
from rudalle_lib.dataset.lease_files import PLAN, REPORT, Lease
from rudalle_lib.dataset.manifests import adopt_manifests
from rudalle_lib.dataset.range_lease import AUTO, Workers, check_planned, parse_shards, see_workers
from rudalle_lib.errors import ConfigError, LeaseLostError, ShardError, StorageError
from rudalle_lib.humanize import counted
from rudalle_lib.pipeline.open_shards import OpenShards, next_shards, settings_digest
from rudalle_lib.pipeline.recorded_run import current_report
from rudalle_lib.prompts.plan import Plan, frozen_plan, read_plan
from rudalle_lib.schema.records import RunManifest, ShardSpec
from rudalle_lib.selection.choices import load_choices
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.storage import Storage
from tasks.plan import plan
from tasks.report import report
from tasks.runtime.events import Event, Noticed, Planned, emit, notice
from tasks.runtime.stopping import stop_at_the_end

ROUNDS = 4
"""With `auto`, a run takes at most this many times the shards that it has in progress at once."""

LOOK_SECONDS = 5.0
"""How long a run that finds all unfinished shards taken waits before it looks again."""


@flow(name="generate-shards", flow_run_name=name_run)
def generate_shards(config: RunConfig, shards: str = AUTO) -> RunManifest | None:
    """Make shards of the dataset that a configuration describes, while other runs make others.

    Args:
        config: the configuration, the same for all runs of the output.
        shards: first and last shard, such as 0-99; or auto: any, until the dataset is finished.

    Returns:
        The manifest of the run if this one has finished last and written the report.

    Raises:
        ConfigError, PromptError, WeightsError, StorageError: an input of the run cannot be used;
            nothing has been made.
        LeaseError: another run works on these shards, on the whole output or with other settings.
        LeaseLostError: this run did not renew its lease in time, and another run has taken over.
        ShardError: some shards failed.
    """
    wanted = parse_shards(shards)
    check_divisible(config)
    weights = check_once(config)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    storage, stop, token = Storage(config.output), threading.Event(), uuid.uuid4().hex
    # Leases are freed last, when no task of this run works any more.
    with ExitStack() as leases, start_runner(config) as runner, stop_at_the_end(stop):
        shared = SharedWork(config, weights, runner, token)
        while not shared.stopped:
            leases.callback(_free, storage, token)
            taken = shared.take(wanted)
            if taken is None:
                break
            todo, lease = taken
            shared.make(todo, leases.enter_context(keep(storage, lease, stop.set)))
            leases.close()
            if wanted is not None:
                break
    run = report_if_last(config, weights, started)
    shared.artifacts.finish(run)
    shared.raise_failures()
    return run


class SharedWork:
    """Work on an output that other runs work on, too.

    Args:
        config: the run.
        weights: digests of the weights by stage.
        runner: starts tasks.
        token: of all leases of this run.
    """

    def __init__(
        self, config: RunConfig, weights: dict[str, str], runner: Runner, token: str
    ) -> None:
        self._config, self._weights, self._token = config, weights, token
        self._storage = Storage(config.output)
        self._settings = settings_digest(config, weights)
        self._runner, self._at_once = runner, runner.shards_in_flight(config)
        self._open: OpenShards | None = None
        self._batch_size: int | None = None
        self._waits = False
        self._done: list[ShardWork] = []
        self.artifacts = RunArtifacts(config)

    @property
    def stopped(self) -> bool:
        """Whether so much has failed that the run stops."""
        return any(work.stopped for work in self._done)

    def raise_failures(self) -> None:
        """Raise a `ShardError` if shards failed, or were not started because too many did."""
        messages = []
        for work in self._done:
            try:
                work.raise_failures()
            except ShardError as error:
                messages.append(str(error))
        if messages:
            raise ShardError("\n".join(messages))

    def take(self, wanted: ShardRange | None) -> tuple[list[ShardSpec], Lease] | None:
        """Take shards, and wait while all unfinished ones are taken.

        Args:
            wanted: the shards; None takes any.

        Returns:
            The unfinished ones of the taken shards, and the lease. None if all shards are finished
            or have failed here.
        """
        while True:
            seconds = self._config.runtime.lease_seconds
            with hold(self._storage, seconds, self._notice_once, purpose=PLAN) as planner:
                workers = see_workers(self._storage, planner)
                todo = [one for one in self._look(workers, wanted) if self._may_make(one)]
                chosen = wanted or next_shards(
                    [one.index for one in todo], workers.busy, ROUNDS * self._at_once, self._at_once
                )
                if chosen is not None:
                    lease = workers.take(chosen, self._token, seconds, self._settings)
                    return [one for one in todo if chosen.holds(one.index)], lease
            if not todo:
                return None
            if not self._waits:
                emit(
                    Noticed("All unfinished shards are taken; waiting for the runs that make them")
                )
                self._waits = True
            time.sleep(min(LOOK_SECONDS, seconds / 4))

    def make(self, todo: list[ShardSpec], holding: Holding) -> None:
        """Make shards, while their lease is held.

        Raises:
            LeaseLostError: another run has taken the shards over.
        """
        shards = holding.lease.shards
        assert shards is not None
        left = f"{counted(len(todo), 'shard')} to do" if todo else "nothing to do"
        emit(Noticed(f"Working on {shards.named}: {left}"))
        adopt_manifests(self._storage, holding.mark.term, shards.holds)
        assert self._open is not None
        work = ShardWork(self._config, self._weights, holding, self._runner, self._publish)
        work.batch_size = self._batch_size
        self._done.append(work)
        work.publish(todo, self._open.choices)
        if holding.lost is not None:
            raise LeaseLostError(holding.lost)

    def _may_make(self, shard: ShardSpec) -> bool:
        return not any(shard.index in work.failed for work in self._done)

    def _publish(self, event: Event) -> None:
        emit(event)
        self.artifacts.note(event)

    def _notice_once(self, message: str) -> None:
        if self._open is None:
            notice(message)

    def _look(self, workers: Workers, wanted: ShardRange | None) -> list[ShardSpec]:
        """The unfinished shards; the first time, plan."""
        if self._open is not None:
            return self._open.find(notice)
        planned = self._plan(workers)
        count = len(planned.shards)
        check_planned(wanted, count)
        self._open = OpenShards(self._config, self._weights, self._storage, planned.shards)
        todo = self._open.find(notice)
        if todo:
            self._batch_size = choose_batch_size(self._config, self._runner, planned.shards)
        own = [one for one in todo if wanted is None or wanted.holds(one.index)]
        self._publish(Planned(planned, len(own), {one.index: one.rows for one in own}))
        return todo

    def _plan(self, workers: Workers) -> Plan:
        """The plan. While others work, it stays as it is."""
        if not workers.busy:
            return plan(self._config, partial(choose_shard_size, self._config, self._runner))
        frozen = frozen_plan(self._config, self._storage)
        if frozen is None:
            raise ConfigError(
                f"The prompts of {public_url(self._config.prompts.uri)} are not planned in "
                f"{self._storage.public_path()}, and a plan does not change while runs work on its "
                "shards; give all of them the same configuration, or wait for them."
            )
        return frozen


def report_if_last(config: RunConfig, weights: dict[str, str], started: str) -> RunManifest | None:
    """Write the report, unless a run works on the output; then that one will.

    Args:
        config: the run.
        weights: digests of the weights by stage.
        started: when this run started, ISO 8601.
    """
    storage = Storage(config.output)
    try:
        with hold(storage, config.runtime.lease_seconds, purpose=REPORT) as lease:
            adopt_manifests(storage, lease.mark.term)
            planned = read_plan(storage)
            selection = load_choices(config, storage, planned).record(planned)
            run = current_report(storage, config, len(planned), selection)
            return run or report(config, weights, len(planned), started, lease.mark, selection)
    except HeldError:
        return None


def _free(storage: Storage, token: str) -> None:
    with suppress(StorageError):  # an unfreed lease expires
        free(storage, token)


# --- a work pool -------------------------------------------------------------------------------


@flow(name="generate-on-workers", flow_run_name=name_run)
async def generate_on_workers(
    config: RunConfig,
    workers: Annotated[int, Field(ge=1, le=1000)] = 2,
    deployment: str = "generate-shards/worker",
) -> RunManifest:
    """Make a dataset with several runs of a deployment, which a work pool starts on its machines.

    A run that dies does no harm: the others take its shards over.

    Args:
        config: the configuration of all runs.
        workers: number of runs.
        deployment: of the flow generate-shards.

    Raises:
        ShardError: the dataset is not finished; another run makes what is missing.
    """
    starts = (
        arun_deployment(
            deployment,
            parameters={"config": config.model_dump(mode="json"), "shards": AUTO},
            flow_run_name=f"{config.name}, {number} of {workers}",
        )
        for number in range(1, workers + 1)
    )
    runs = await asyncio.gather(*starts)
    return await asyncio.to_thread(finished_by, config, runs)


def finished_by(config: RunConfig, runs: list[FlowRun]) -> RunManifest:
    """The manifest of a dataset that several runs have made.

    Raises:
        ShardError: it is not finished.
    """
    storage = Storage(config.output)
    failed = [run.name for run in runs if run.state is None or not run.state.is_completed()]
    planned = read_plan(storage)
    selection = load_choices(config, storage, planned).record(planned)
    found = current_report(storage, config, len(planned), selection)
    if found is not None and found.totals.shards == found.shards_planned:
        return found
    which = f"{len(failed)} of {counted(len(runs), 'run')} failed ({'; '.join(failed)})"
    raise ShardError(
        f"{storage.public_path()} is not finished: {which if failed else 'no run failed'}. Run "
        "again to make what is missing."
    )
