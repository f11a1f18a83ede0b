"""The stage tasks of a shard: their order, and which artifacts each of them reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from prefect import Task

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.lease_files import LeaseMark
from rudalle_lib.pipeline.reuse import Artifacts, Reuse, find_reuse, list_artifacts
from rudalle_lib.pipeline.stages import (
    STAGES,
    active_stages,
    fingerprints,
    last_image_stage,
    stage_models,
)
from rudalle_lib.prompts.plan import read_shard
from rudalle_lib.schema.records import ShardSpec
from rudalle_lib.selection.choices import NO_CHOICE, Choice
from rudalle_lib.storage.storage import Storage
from rudalle_lib.storage.urls import Url, whole_url
from tasks.cutout import cutout
from tasks.decode import decode
from tasks.generate import generate
from tasks.publish import publish
from tasks.rounds import Judges
from tasks.runtime.job import Job
from tasks.score import score
from tasks.translate import translate
from tasks.upscale import upscale

Started_co = TypeVar("Started_co", covariant=True)
"""What starting a task returns: the result, or a future of it."""


class Start(Protocol[Started_co]):
    """Starts a task. Parameters may be results or futures of tasks that were started before."""

    def __call__(self, task: Task[Any, Any], **parameters: Any) -> Started_co:
        """Start a task; parameters are passed by name."""


def start_stages(
    start: Start[Started_co],
    config: RunConfig,
    weights: Mapping[str, str],
    shard: ShardSpec,
    lease: LeaseMark | None = None,
    choice: Choice = NO_CHOICE,
    score_only: bool = False,
    batch_size: int | None = None,
    artifacts: Artifacts | None = None,
) -> dict[str, Started_co]:
    """Start all stages of a planned shard, in order.

    Args:
        start: starts one task; called once per stage.
        config: the run.
        weights: digests of the weights by stage.
        shard: the planned shard.
        lease: mark of the lease on the output, if one is held.
        choice: what decides which images are kept, beside the settings of `score`.
        score_only: start no stage after "score".
        batch_size: of the decoder, if it was chosen for the run.
        artifacts: those that the output has; None lists them.

    Returns:
        The result of `start` by stage name, "publish" or "score" last.
    """
    reading = config.prompts.reading(rows=True)
    signed = signed_urls(config, shard)
    reuse = find_earlier(config, weights, shard, artifacts)
    job = Job(
        shard, config.output, config.runtime, config.weights, lease, reading, signed, batch_size,
        reuse,
    )  # fmt: skip
    expected = fingerprints(config, weights, shard, choice.digest)
    active = {stage.name for stage in active_stages(config)}
    started: dict[str, Started_co] = {}

    def begin(task: Task[Any, Any], **inputs: Any) -> None:
        section, fingerprint = STAGES[task.name].section(config), expected[task.name]
        started[task.name] = start(
            task, section=section, job=job, fingerprint=fingerprint, **inputs
        )

    begin(translate)
    begin(
        generate,
        translated=started["translate"],
        run_seed=config.seed,
        judges=_judges(config, expected),
        min_confidence=config.translate.min_confidence,
    )
    begin(decode, generated=started["generate"])
    begin(score, translated=started["translate"], decoded=started["decode"])
    if score_only:
        return started
    selecting = {
        "selection": config.score,
        "generated": started["generate"],
        "scored": started["score"],
        "choice": choice,
    }
    if "upscale" in active:
        begin(upscale, decoded=started["decode"], **selecting)
    if "cutout" in active:
        begin(cutout, images=started[last_image_stage(started)], **selecting)
    models = {stage: entry.name for stage, entry in stage_models(config).items()}
    begin(
        publish,
        selection=config.score,
        models=models,
        artifacts=dict(started),
        config_digest=config.digest(),
        weights=dict(weights),
        choice=choice,
    )
    return started


def _judges(config: RunConfig, expected: Mapping[str, str]) -> Judges | None:
    """What decides how many images are drawn, if that is decided in rounds."""
    if config.generate.until_accepted is None:
        return None
    return Judges(config.decode, config.score, expected)


def find_earlier(
    config: RunConfig,
    weights: Mapping[str, str],
    shard: ShardSpec,
    artifacts: Artifacts | None = None,
) -> Reuse:
    """What a shard's stages may keep of earlier runs; the arguments are those of `start_stages`."""
    storage = Storage(config.output)
    listed = list_artifacts(storage, {shard.index}) if artifacts is None else artifacts
    return find_reuse(storage, config, weights, shard, listed)


def signed_urls(config: RunConfig, shard: ShardSpec) -> tuple[Url, ...]:
    """The whole URLs of a shard's image prompts, for tasks that may run in other processes.

    The plan holds them without signatures; this process knows those of the table that it has read.
    """
    if not shard.image_prompts:
        return ()
    prompts = read_shard(Storage(config.output), shard)
    stored = {prompt.overrides.image_prompt or "" for prompt in prompts}
    return tuple(Url(whole_url(one)) for one in sorted(stored) if whole_url(one) != one)
