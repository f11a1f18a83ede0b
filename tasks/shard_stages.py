"""The stages of a shard: in which order, and which of them reads what another has made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from prefect import Task

from rudalle_lib.config import RunConfig
from rudalle_lib.records import ShardSpec
from rudalle_lib.stages import fingerprints, models
from tasks.cutout import cutout
from tasks.decode import decode
from tasks.generate import generate
from tasks.job import Job
from tasks.publish import publish
from tasks.score import score
from tasks.translate import translate
from tasks.upscale import upscale

Made_co = TypeVar("Made_co", covariant=True)
"""What starting a task gives: its result, or a future of it."""


class Start(Protocol[Made_co]):
    """Starts a task with its parameters by name, among them what other tasks were started as."""

    def __call__(self, task: Task[Any, Any], **parameters: Any) -> Made_co:
        """Start it."""


def start_stages(
    start: Start[Made_co],
    config: RunConfig,
    weights: Mapping[str, str],
    shard: ShardSpec,
    lease: int | None = None,
) -> dict[str, Made_co]:
    """Start all stages of a planned shard, in the order in which they read one another.

    Args:
        start: is called for each stage.
        config: the run.
        weights: digests of the weights by stage.
        shard: what to make.
        lease: number of the lease on the output, if one is held.

    Returns:
        What each stage was started as, by its name; "publish" is the last.
    """
    job = Job(shard, config.output, config.runtime, config.weights, lease)
    of = fingerprints(config, weights, shard)
    made: dict[str, Made_co] = {}
    made["translate"] = start(
        translate, section=config.translate, job=job, fingerprint=of["translate"]
    )
    made["generate"] = start(
        generate,
        section=config.generate,
        job=job,
        translated=made["translate"],
        fingerprint=of["generate"],
        run_seed=config.seed,
    )
    made["decode"] = start(
        decode,
        section=config.decode,
        job=job,
        generated=made["generate"],
        fingerprint=of["decode"],
    )
    made["score"] = start(
        score,
        section=config.score,
        job=job,
        translated=made["translate"],
        decoded=made["decode"],
        fingerprint=of["score"],
    )
    if config.upscale.model is not None:
        made["upscale"] = start(
            upscale,
            section=config.upscale,
            selection=config.score,
            job=job,
            decoded=made["decode"],
            scored=made["score"],
            fingerprint=of["upscale"],
        )
    if config.cutout.transparent:
        made["cutout"] = start(
            cutout,
            section=config.cutout,
            selection=config.score,
            job=job,
            pictures=made.get("upscale", made["decode"]),
            scored=made["score"],
            fingerprint=of["cutout"],
        )
    made["publish"] = start(
        publish,
        section=config.publish,
        selection=config.score,
        job=job,
        models={stage: entry.name for stage, entry in models(config).items()},
        artifacts=dict(made),
        fingerprint=of["publish"],
        config_digest=config.digest(),
    )
    return made
