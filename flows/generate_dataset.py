"""Generate a dataset: a table of prompts in, scored pictures with their metadata out.

Plan, then for every shard translate, generate, decode, score, upscale, cut out and publish, then
report.
Tasks hand each other references to what lies in storage, never pictures. Storage is the only truth:
a shard is finished if its manifest has the fingerprint that this configuration would give it, and
then it is skipped; Prefect's own database may be thrown away between two runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from queue import SimpleQueue
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture

from flows.artifacts import RunArtifacts
from flows.runners import Submit, start_runner
from rudalle_lib.config import RunConfig
from rudalle_lib.difference import compare
from rudalle_lib.errors import ShardError
from rudalle_lib.lease import Holding, hold
from rudalle_lib.manifest import read_shard_manifests
from rudalle_lib.preflight import check_run
from rudalle_lib.recent_work import RecentWork
from rudalle_lib.records import RunManifest, ShardSpec
from rudalle_lib.report import current_report
from rudalle_lib.storage import Storage
from tasks.plan import plan
from tasks.progress import Event, Planned, ShardFailed, ShardFinished, notice, tell
from tasks.report import report
from tasks.shard_stages import start_stages
from tasks.stopping import stop_at_the_end

Futures = dict[str, PrefectFuture[Any]]
Settled = tuple[ShardSpec, Futures]


@flow(name="generate-dataset", flow_run_name="{config.name}")
def generate_dataset(config: RunConfig) -> RunManifest:
    """Make the dataset that a configuration describes, or what is missing of it.

    Raises:
        ConfigError, PromptError, WeightsError, StorageError: something that the run needs is wrong;
            nothing has been written.
        LeaseError: another run writes to the output.
        LeaseLostError: this run was silent for so long that another one has taken the output over.
        ShardError: some shards failed; the others are finished, the next run makes just those. Or
            so much failed of late that the run stopped.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    weights = check_run(config)
    with (
        hold(Storage(config.output), config.runtime.lease_seconds) as lease,
        start_runner(config) as submit,
        stop_at_the_end(),
    ):
        return make_missing(config, weights, lease, started, submit)


def make_missing(
    config: RunConfig, weights: dict[str, str], lease: Holding, started: str, submit: Submit
) -> RunManifest:
    """Plan, work on all shards that are not finished, and report; the output is ours alone."""
    artifacts = RunArtifacts(config)

    def say(event: Event) -> None:
        tell(event)
        artifacts.note(event)

    planned = plan(config)
    finished = read_shard_manifests(Storage(config.output), notice)
    todo = compare(config, weights, planned.shards, finished).todo
    say(Planned(planned, len(todo)))

    failed: dict[int, str] = {}
    recent = RecentWork(config.runtime.max_failed_share)
    worthwhile = takewhile(lambda _: not (recent.hopeless or lease.lost), todo)
    # Where a task is given a future, Prefect gives it the result.
    start = partial(start_stages, submit, config, weights, lease=lease.number)
    settled = 0
    for shard, futures in run_bounded(worthwhile, config.runtime.shards_in_flight, start):
        settled += 1
        error = first_error(futures)
        if error is None:
            manifest = futures["publish"].result()
            recent.shard_finished(manifest)
            say(ShardFinished(manifest))
        else:
            failed[shard.index] = error
            recent.shard_failed()
            say(ShardFailed(shard.index, error))

    shards = len(planned.shards)
    run = current_report(Storage(config.output), config, shards)
    run = run or report(config, weights, shards, started, lease.number)
    artifacts.finish(run)
    stopped = [recent.verdict(len(todo) - settled)] if settled < len(todo) else []
    if stopped or failed:
        raise ShardError("\n".join([*stopped, *describe(failed, settled)]))
    return run


def run_bounded(
    shards: Iterable[ShardSpec], limit: int, submit: Callable[[ShardSpec], Futures]
) -> Iterator[Settled]:
    """Submit shards in order, at most `limit` under way; give each back when it has settled."""
    settled: SimpleQueue[Settled] = SimpleQueue()
    under_way = 0
    for shard in shards:
        futures = submit(shard)
        futures["publish"].add_done_callback(partial(_put, settled, (shard, futures)))
        under_way += 1
        if under_way == limit:
            yield settled.get()
            under_way -= 1
    for _ in range(under_way):
        yield settled.get()


def _put(queue: SimpleQueue[Settled], item: Settled, _: PrefectFuture[Any]) -> None:
    queue.put(item)


def first_error(futures: Futures) -> str | None:
    """Which stage of a settled shard failed, and why; None if none did."""
    for stage, future in futures.items():
        future.wait()
        if not future.state.is_completed():
            error = future.result(raise_on_failure=False)
            return f"{stage}: {error}"
    return None


def describe(failed: Mapping[int, str], tried: int) -> list[str]:
    """What to do about failed shards, and one sentence for each; nothing where none failed."""
    if not failed:
        return []
    lines = [f"shard {index:05d}, {error}" for index, error in sorted(failed.items())]
    return [f"{len(failed)} of {tried} shards failed; run again to make just those.", *lines]
