"""The stages of a shard one after another in this process, without Prefect: for a few pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import Task

from rudalle_lib.config import RunConfig
from rudalle_lib.config_runtime import RuntimeConfig
from rudalle_lib.records import ShardManifest, ShardSpec
from tasks.loaded_models import (
    decoder,
    device_slot,
    scorer,
    segmenter,
    translator,
    upscaler,
    vqgan,
)
from tasks.shard_stages import start_stages


def load_models(config: RunConfig) -> float:
    """Load the models of the run, so that no stage is timed with that; the seconds it took."""
    weights, runtime = config.weights, here(config.runtime)
    with device_slot(runtime, 0, runtime.split_decoder) as slot:
        translator(config.translate.model, weights, slot.device)
        decoder(config.generate.model, weights, slot.devices, runtime.dtype)
        vqgan(config.decode.model, weights, slot.device, config.decode.dtype)
        scorer(config.score.model, weights, slot.device, config.score.dtype)
        if config.upscale.model is not None:
            upscaler(config.upscale.model, weights, slot.device, config.upscale.dtype)
        if config.cutout.transparent and config.cutout.model is not None:
            segmenter(config.cutout.model, weights, slot.device)
    return slot.seconds


def work_on(config: RunConfig, weights: Mapping[str, str], shard: ShardSpec) -> ShardManifest:
    """Take a planned shard through all stages; `weights` are digests by stage.

    Raises:
        RudalleError: a stage failed; nothing is tried again.
    """

    def start(task: Task[Any, Any], **parameters: Any) -> Any:
        return task.fn(**parameters)

    elsewhere = config.model_copy(update={"runtime": here(config.runtime)})
    manifest: ShardManifest = start_stages(start, elsewhere, weights, shard)["publish"]
    return manifest


def here(runtime: RuntimeConfig) -> RuntimeConfig:
    """Where this process works for a run whose tasks work on Ray, or take turns with others."""
    return runtime.model_copy(update={"runner": "local", "limit_devices": False})
