"""Run the stages of a shard one after another without Prefect, for a few images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import Task

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.runtime import RuntimeConfig
from rudalle_lib.dataset.lease_files import LeaseMark
from rudalle_lib.schema.records import ShardManifest, ShardSpec
from rudalle_lib.selection.across_shards import Scored
from rudalle_lib.selection.choices import NO_CHOICE, Choice
from tasks.runtime.models import (
    decoder,
    device_slot,
    scorer,
    second_scorer,
    segmenter,
    translator,
    upscaler,
    vqgan,
)
from tasks.shard_stages import start_stages


def load_models(config: RunConfig) -> float:
    """Load all models of a run, so that the time of a stage does not include loading.

    Returns:
        Seconds that loading took.
    """
    weights, runtime = config.weights, local_runtime(config.runtime)
    with device_slot(runtime, 0, runtime.split_decoder) as slot:
        translator(config.translate.model, weights, slot.device)
        decoder(config.generate.model, weights, slot.devices, runtime.dtype)
        vqgan(config.decode.model, weights, slot.device, config.decode.dtype)
        scorer(config.score.model, weights, slot.device, config.score.dtype)
        if config.score.second_model is not None:
            second_scorer(config.score.second_model, weights, slot.device, config.score.dtype)
        if config.upscale.model is not None:
            upscaler(config.upscale.model, weights, slot.device, config.upscale.dtype)
        if config.cutout.transparent and config.cutout.model is not None:
            segmenter(config.cutout.model, weights, slot.device)
    return slot.seconds


def process_shard(
    config: RunConfig,
    weights: Mapping[str, str],
    shard: ShardSpec,
    lease: LeaseMark | None = None,
    choice: Choice = NO_CHOICE,
) -> ShardManifest:
    """Run all stages of a planned shard.

    Args:
        config: the run.
        weights: digests of the weights by stage.
        shard: the planned shard.
        lease: mark of the lease on the output, if one is held.
        choice: what decides which images are kept, beside the settings of `score`.

    Raises:
        RudalleError: a stage failed; stages are not retried.
    """
    made = start_stages(_run, _local(config), weights, shard, lease, choice)
    manifest: ShardManifest = made["publish"]
    return manifest


def score_shard(
    config: RunConfig,
    weights: Mapping[str, str],
    shard: ShardSpec,
    lease: LeaseMark | None = None,
) -> Scored:
    """Run the stages up to "score", for rules that look across shards; as `process_shard`."""
    made = start_stages(_run, _local(config), weights, shard, lease, score_only=True)
    return Scored(shard, made["translate"], made["generate"], made["score"])


def _run(task: Task[Any, Any], **parameters: Any) -> Any:
    return task.fn(**parameters)


def _local(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"runtime": local_runtime(config.runtime)})


def local_runtime(runtime: RuntimeConfig) -> RuntimeConfig:
    """The runtime settings with the local runner, and without limits that need a Prefect server."""
    return runtime.model_copy(update={"runner": "local", "limit_devices": False})
