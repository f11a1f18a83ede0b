"""The stages of a shard one after another in this process, without Prefect: for a few pictures."""

from __future__ import annotations

from collections.abc import Mapping

from rudalle_lib.config import RunConfig
from rudalle_lib.config_runtime import RuntimeConfig
from rudalle_lib.records import ShardManifest, ShardSpec, StageArtifact
from rudalle_lib.stages import fingerprints, models
from tasks.cutout import cutout
from tasks.decode import decode
from tasks.generate import generate
from tasks.job import Job
from tasks.loaded_models import (
    decoder,
    device_slot,
    scorer,
    segmenter,
    translator,
    upscaler,
    vqgan,
)
from tasks.publish import publish
from tasks.score import score
from tasks.translate import translate
from tasks.upscale import upscale


def load_models(config: RunConfig) -> float:
    """Load the models of the run, so that no stage is timed with that; the seconds it took."""
    weights, runtime = config.weights, here(config.runtime)
    with device_slot(runtime, 0, runtime.split_decoder) as slot:
        translator(config.translate.model, weights, slot.device)
        decoder(config.generate.model, weights, slot.devices, runtime.dtype)
        vqgan(config.decode.model, weights, slot.device, config.decode.dtype)
        scorer(config.score.model, weights, slot.device)
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
    job = Job(shard, config.output, here(config.runtime), config.weights)
    names = {stage: entry.name for stage, entry in models(config).items()}
    of = fingerprints(config, weights, shard)
    made: dict[str, StageArtifact] = {}
    made["translate"] = translate.fn(config.translate, job, of["translate"])
    made["generate"] = generate.fn(
        config.generate, job, made["translate"], of["generate"], config.seed
    )
    made["decode"] = decode.fn(config.decode, job, made["generate"], of["decode"])
    made["score"] = score.fn(config.score, job, made["translate"], made["decode"], of["score"])
    if config.upscale.model is not None:
        made["upscale"] = upscale.fn(
            config.upscale, config.score, job, made["decode"], made["score"], of["upscale"]
        )
    if config.cutout.transparent:
        source = made.get("upscale", made["decode"])
        made["cutout"] = cutout.fn(
            config.cutout, config.score, job, source, made["score"], of["cutout"]
        )
    return publish.fn(
        config.publish, config.score, job, names, made, of["publish"], config.digest()
    )


def here(runtime: RuntimeConfig) -> RuntimeConfig:
    """Where this process works for a run whose tasks work on Ray, or take turns with others."""
    return runtime.model_copy(update={"runner": "local", "limit_devices": False})
