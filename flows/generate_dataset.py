"""Generate a dataset: a table of prompts in, scored images with their metadata out.

Plan; then translate, generate, decode, score, upscale, cut out and publish every shard; report.

Tasks pass each other references to files in storage, never images. Storage is the only source of
truth: a shard is finished if its manifest has the fingerprint that this configuration gives it, and
then it is skipped. Prefect's own database may be deleted between two runs.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from queue import SimpleQueue
from typing import Annotated, Any, NamedTuple

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from flows.artifacts import RunArtifacts
from flows.runners import Runner, start_runner
from rudalle_lib.checks.preflight import check_rerender, check_run
from rudalle_lib.config.form import ShortForm
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.lease import Holding, hold
from rudalle_lib.dataset.manifests import adopt_manifests, read_shard_manifests
from rudalle_lib.errors import RudalleError, ShardError
from rudalle_lib.generation.batch_size import even_batch_size
from rudalle_lib.generation.shard_size import cpu_shard_size
from rudalle_lib.pipeline.diff import compare
from rudalle_lib.pipeline.failure_rate import FailureRate
from rudalle_lib.pipeline.open_shards import ANY_SHARD
from rudalle_lib.pipeline.recorded_run import current_report
from rudalle_lib.pipeline.rerender import seed_output
from rudalle_lib.pipeline.reuse import Artifacts, list_artifacts
from rudalle_lib.pipeline.selected import decide
from rudalle_lib.prompts.plan import Plan
from rudalle_lib.schema.records import RunManifest, ShardSpec
from rudalle_lib.selection.across_shards import Scored
from rudalle_lib.selection.choices import NO_CHOICES, Choices
from rudalle_lib.storage.storage import Storage
from tasks.batch_size import fitting_batch_size, fitting_shard_size
from tasks.plan import plan
from tasks.report import report
from tasks.runtime.events import (
    Event,
    Planned,
    Selected,
    ShardFailed,
    ShardFinished,
    emit,
    notice,
)
from tasks.runtime.job import Job
from tasks.runtime.stopping import stop_at_the_end
from tasks.shard_stages import start_stages

Futures = dict[str, PrefectFuture[Any]]
Settled = tuple[ShardSpec, Futures]

checked_weights: ContextVar[Mapping[str, str] | None] = ContextVar("checked_weights", default=None)
"""Weight digests by stage, if the caller has run `check_run` for this configuration already."""


def check_once(config: RunConfig) -> dict[str, str]:
    """Return the weight digests by stage; checks the run unless its caller has done so."""
    return dict(checked_weights.get() or check_run(config))


GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+")
"""Names such as "clever-otter", which Prefect gives runs that nobody has named."""


def name_run() -> str:
    """Return the name of this flow run: that of its user, otherwise that of its settings."""
    given = str(flow_run.name or "")
    named = given and not GENERATED_NAME.fullmatch(given)
    return given if named else str(flow_run.parameters["config"].name)


@flow(name="generate-dataset", flow_run_name=name_run)
def generate_dataset(config: Annotated[RunConfig, ShortForm()]) -> RunManifest:
    """Make the dataset that a configuration describes, or the part of it that is missing.

    Raises:
        ConfigError, PromptError, WeightsError, StorageError: an input of the run cannot be used;
            nothing has been written.
        LeaseError: another run is writing to the output.
        LeaseLostError: this run did not renew its lease in time, and another run has taken over.
        ShardError: some shards failed; the others are finished, and the next run makes only those.
            Or the failure rate was too high and the run stopped.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    weights = check_once(config)
    stop = threading.Event()
    with (
        hold(Storage(config.output), config.runtime.lease_seconds, notice, stop.set) as lease,
        start_runner(config) as runner,
        stop_at_the_end(stop),
    ):
        return make_missing(config, weights, lease, started, runner)


@flow(name="rerender-dataset", flow_run_name=name_run)
def rerender_dataset(config: RunConfig, source: str) -> RunManifest:
    """Make a dataset from the image tokens of another one, without drawing anything.

    Args:
        config: what `pipeline.rerender` made of the configuration of the source.
        source: the finished dataset.

    Raises:
        RudalleError: as `generate_dataset`, or the source has not all that is needed.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    weights = dict(checked_weights.get() or check_rerender(Storage(source), config))
    stop = threading.Event()
    with (
        hold(Storage(config.output), config.runtime.lease_seconds, notice, stop.set) as lease,
        start_runner(config) as runner,
        stop_at_the_end(stop),
    ):
        adopt_manifests(Storage(config.output), lease.mark.term)
        seeded = seed_output(Storage(source), config, weights, lease.mark.term)
        return make_missing(config, weights, lease, started, runner, seeded)


def make_missing(
    config: RunConfig,
    weights: dict[str, str],
    lease: Holding,
    started: str,
    runner: Runner,
    planned: Plan | None = None,
) -> RunManifest:
    """Process all shards that are not finished, and report, with the lease held.

    Args:
        config: the run.
        weights: digests of the weights by stage.
        lease: the lease that is held.
        started: when the run started, ISO 8601.
        runner: where tasks run.
        planned: the plan; by default the prompt table is read and its new prompts are planned.
    """
    artifacts = RunArtifacts(config)

    def publish_event(event: Event) -> None:
        emit(event)
        artifacts.note(event)

    storage = Storage(config.output)
    adopt_manifests(storage, lease.mark.term)
    if planned is None:
        planned = plan(config, partial(choose_shard_size, config, runner))
    finished = read_shard_manifests(storage, notice)
    work = ShardWork(config, weights, lease, runner, publish_event)
    choices, selector = decide(config, weights, storage, planned.shards, finished)
    unscored = [shard for shard in planned.shards if shard.index not in selector.indices]
    if not config.select.looks_across:
        unscored = []
    difference = compare(config, weights, planned.shards, finished, choices)
    todo = difference.todo
    if difference.draws:
        work.batch_size = choose_batch_size(config, runner, planned.shards)
    first = unscored or todo
    work.artifacts = list_artifacts(storage, {s.index for s in planned.shards} if first else ())
    publish_event(Planned(planned, len(first), {shard.index: shard.rows for shard in first}))
    if unscored:
        for scored in work.score(unscored):
            selector.read([scored])
        choices = selector.decide()
        done = [shard for shard in planned.shards if shard.index in selector.indices]
        todo = compare(config, weights, done, finished, choices).todo
        work.announce(choices, todo)
    work.publish(todo, choices)

    shards, selection = len(planned.shards), choices.record(planned.shards)
    run = current_report(storage, config, shards, selection)
    run = run or report(config, weights, shards, started, lease.mark, selection)
    artifacts.finish(run)
    work.raise_failures()
    return run


class ShardWork:
    """The shards of a run on their way through a runner, and those that failed.

    Attributes:
        failed: why, by the index of each failed shard.
        batch_size: of the decoder, if one was chosen for the whole run.
    """

    def __init__(
        self,
        config: RunConfig,
        weights: Mapping[str, str],
        lease: Holding,
        runner: Runner,
        publish_event: Callable[[Event], None],
    ) -> None:
        self._config, self._weights, self._lease = config, weights, lease
        self._runner, self._publish_event = runner, publish_event
        self._failures = FailureRate(config.runtime.max_failed_share)
        self.failed: dict[int, str] = {}
        self._settled = self._left = 0
        self._rows: dict[int, int] = {}
        self.batch_size: int | None = None
        self.artifacts: Artifacts = {}
        """Those that the output has of earlier runs."""

    def score(self, shards: Sequence[ShardSpec]) -> Iterator[Scored]:
        """Draw and score shards; yields those that did not fail."""
        for shard, futures in self._process(shards, NO_CHOICES, score_only=True):
            self._failures.shard_scored()
            made = [futures[stage].result() for stage in ("translate", "generate", "score")]
            yield Scored(shard, *made)

    def publish(self, shards: Sequence[ShardSpec], choices: Choices) -> None:
        """Publish shards, after the stages before it that are not done."""
        for _, futures in self._process(shards, choices):
            manifest = futures["publish"].result()
            self._failures.shard_finished(manifest)
            self._publish_event(ShardFinished(manifest))

    def announce(self, choices: Choices, todo: Sequence[ShardSpec]) -> None:
        """Say what rules that look across shards have decided."""
        prompts = {index: self._rows[index] for index in self.failed}
        prompts |= {shard.index: shard.rows for shard in todo}
        if choices.across is not None:
            rules = choices.across.outcome.counts
            self._publish_event(Selected(rules[0].before, rules[-1].kept, prompts))

    @property
    def stopped(self) -> bool:
        """Whether so much has failed that the run stops."""
        return self._failures.too_high

    def raise_failures(self) -> None:
        """Raise a `ShardError` if shards failed, or were not started because too many did."""
        stopped = [self._failures.explain(self._left)] if self._left else []
        if stopped or self.failed:
            lines = describe_failures(self.failed, self._settled)
            raise ShardError("\n".join([*stopped, *lines]))

    def _process(
        self, shards: Sequence[ShardSpec], choices: Choices, score_only: bool = False
    ) -> Iterator[Settled]:
        """Start shards; yield those that did not fail when they have settled."""

        def start(shard: ShardSpec) -> Futures:
            config, weights, lease = self._config, self._weights, self._lease.mark
            choice = choices.of(shard.index)
            # If a parameter of a task is a future, Prefect replaces it by its result.
            submit = self._runner.submit
            return start_stages(
                submit, config, weights, shard, lease, choice, score_only, self.batch_size,
                self.artifacts,
            )  # fmt: skip

        settled = 0
        self._rows |= {shard.index: shard.rows for shard in shards}
        allowed = takewhile(lambda _: not (self._failures.too_high or self._lease.lost), shards)
        for shard, futures in run_bounded(
            allowed, self._runner.shards_in_flight(self._config), start
        ):
            settled += 1
            failure = first_failure(shard, futures)
            if failure is None:
                yield shard, futures
            else:
                self.failed[shard.index] = failure.message
                self._failures.shard_failed()
                self._publish_event(ShardFailed(shard.index, failure.message, failure.page))
        self._settled = max(self._settled, settled)
        self._left = max(self._left, len(shards) - settled)


def choose_shard_size(config: RunConfig, runner: Runner) -> int:
    """The prompts per shard of `prompts.shard_size: auto`, by the GPU with the least memory."""
    section = config.generate
    if not runner.on_gpus:
        return cpu_shard_size(section.images)
    job = Job(ANY_SHARD, config.output, config.runtime, config.weights)
    sizes = runner.ask(fitting_shard_size, section=section, job=job)
    if not sizes:
        raise ShardError("no GPU is left to choose prompts.shard_size for; see the log for why")
    return min(sizes)


def choose_batch_size(config: RunConfig, runner: Runner, shards: Sequence[ShardSpec]) -> int | None:
    """One automatic batch size for all GPUs of a run.

    On a GPU the last bits of an image depend on how many rows the decoder computes at once, so they
    must not depend on which GPU draws it.

    Returns:
        None if `generate.batch_size` is a number, or if the images do not depend on it.
    """
    section = config.generate
    if section.batch_size != "auto" or not runner.on_gpus:
        return None
    job = Job(shards[0], config.output, config.runtime, config.weights)
    try:
        fitting = runner.ask(fitting_batch_size, section=section, job=job)
    except RudalleError:  # the shards will fail for the same reason, and say so
        return None
    images = max(shard.rows for shard in shards) * section.images
    return even_batch_size(fitting, images, section.images) if fitting else None


def run_bounded(
    shards: Iterable[ShardSpec], limit: int, submit: Callable[[ShardSpec], Futures]
) -> Iterator[Settled]:
    """Submit shards in order, at most `limit` at a time; yield each one when it has settled."""
    settled: SimpleQueue[Settled] = SimpleQueue()
    in_flight = 0
    for shard in shards:
        futures = submit(shard)
        last = next(reversed(futures.values()))
        last.add_done_callback(partial(_put, settled, (shard, futures)))
        in_flight += 1
        if in_flight == limit:
            yield settled.get()
            in_flight -= 1
    for _ in range(in_flight):
        yield settled.get()


def _put(queue: SimpleQueue[Settled], item: Settled, _: PrefectFuture[Any]) -> None:
    queue.put(item)


class Failure(NamedTuple):
    """Why a shard failed: stage, rows of the prompt table and error; and the task's page."""

    message: str
    page: str


def first_failure(shard: ShardSpec, futures: Futures) -> Failure | None:
    """The failure of the first stage of a settled shard that did not complete; None if all did."""
    for stage, future in futures.items():
        future.wait()
        if not future.state.is_completed():
            error = future.result(raise_on_failure=False)
            page = url_for("task-run", obj_id=future.task_run_id)
            rows = f" ({shard.source})" if shard.source else ""
            return Failure(f"{stage}{rows}: {error}", page or "")
    return None


def describe_failures(failed: Mapping[int, str], settled: int) -> list[str]:
    """What to do about failed shards, and one line for each; empty if none failed."""
    if not failed:
        return []
    lines = [f"shard {index:05d}, {error}" for index, error in sorted(failed.items())]
    return [f"{len(failed)} of {settled} shards failed; run again to make only those.", *lines]
