"""The stages of a run: what the result of each depends on, and where it is kept.

A stage's artifact is a Parquet file with its fingerprint in the schema metadata. Equal fingerprint
and whole file: the stage is done and is skipped. Selection is no stage of its own: it only reads
scores, so a changed threshold re-runs no network but the upscaler on newly chosen images.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from rudalle_lib import layout, registry, weight_files
from rudalle_lib.config import RunConfig
from rudalle_lib.manifest import fingerprint
from rudalle_lib.records import ShardSpec, StageArtifact
from rudalle_lib.registry import Kind, ModelEntry
from rudalle_lib.storage import Storage

KINDS: Mapping[str, Kind] = {
    "translate": "translator",
    "generate": "decoder",
    "decode": "vqgan",
    "score": "scorer",
    "upscale": "upscaler",
}
"""The kind of model that each stage with a model takes, in order."""

STAGES = (*KINDS, "publish")

UPSTREAM: Mapping[str, tuple[str, ...]] = {
    "translate": (),
    "generate": ("translate",),
    "decode": ("generate",),
    "score": ("decode",),
    "upscale": ("decode",),
    "publish": ("score", "upscale"),
}
"""What the result of each stage is made from. Which pictures are enlarged is chosen by score, but
an enlarged picture depends on the drawn one alone."""

SELECTION = ("min_score", "keep_best")
"""Settings of `ScoreConfig` that choose among scores and make none."""


def models(config: RunConfig) -> dict[str, ModelEntry]:
    """The registry entry of every stage that has a model; reads no weights.

    Raises:
        ConfigError: an unknown name, or a model of another kind than the stage takes.
    """
    names = {stage: getattr(config, stage).model for stage in KINDS}
    return {stage: registry.get(name, KINDS[stage]) for stage, name in names.items() if name}


def weight_digests(config: RunConfig) -> dict[str, str]:
    """Digest of the weights of every stage that has a model; fetches files that are not here.

    Raises:
        ConfigError: as `models`.
        WeightsError: files that cannot be had or are not what the registry says.
    """
    return {
        stage: weight_files.digest(entry, weight_files.resolve_files(entry, config.weights))
        for stage, entry in models(config).items()
    }


def fingerprints(config: RunConfig, weights: Mapping[str, str], shard: ShardSpec) -> dict[str, str]:
    """The fingerprint of every stage's result for one shard, from the first to the last.

    `weights` is what `weight_digests` gives. Equal fingerprints, equal results.
    """
    settings = {
        "translate": config.translate.identity(),
        "generate": config.generate.identity()
        | {"seed": config.seed, "dtype": config.runtime.dtype},
        "decode": config.decode.identity(),
        "score": config.score.identity(exclude=SELECTION),
        "upscale": config.upscale.identity(),
        "publish": config.publish.identity() | config.score.model_dump(include=set(SELECTION)),
    }
    made: dict[str, str] = {}
    for stage in STAGES:
        upstream = [made[above] for above in UPSTREAM[stage]] or shard.fingerprint
        made[stage] = fingerprint(stage, 1, settings[stage], upstream, weights.get(stage))
    return made


def find_artifact(
    storage: Storage, stage: str, shard: ShardSpec, expected: str
) -> StageArtifact | None:
    """What the stage made of the shard, if it is whole and has the expected fingerprint."""
    path = layout.stage_path(stage, shard.index)
    metadata = storage.read_metadata(path)
    if metadata is None or metadata.get("fingerprint") != expected:
        return None
    rows, seconds = int(metadata["rows"]), float(metadata["seconds"])
    return StageArtifact(storage.url(path), expected, rows, seconds)


def write_artifact(
    storage: Storage,
    stage: str,
    shard: ShardSpec,
    fingerprint: str,
    table: pa.Table,
    seconds: float,
) -> StageArtifact:
    """Write what a stage made of a shard; `seconds` is what making it took."""
    path, seconds = layout.stage_path(stage, shard.index), round(seconds, 3)
    metadata = {"fingerprint": fingerprint, "rows": str(table.num_rows), "seconds": str(seconds)}
    storage.write_table(path, table, metadata)
    return StageArtifact(storage.url(path), fingerprint, table.num_rows, seconds)


def read_artifact(storage: Storage, artifact: StageArtifact) -> pa.Table:
    """The table of an artifact.

    Raises:
        StorageError: it is gone or damaged.
    """
    return storage.read_table(storage.relative(artifact.uri))
