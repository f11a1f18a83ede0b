"""The stages of a run: what the result of each depends on, and where it is kept.

A stage's artifact is a Parquet file with its fingerprint in the schema metadata. Equal fingerprint
and whole file: the stage is done and is skipped. Selection is no stage of its own: it only reads
scores, so a changed threshold re-runs no network but the upscaler and what cuts images out, on
newly chosen ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

import pyarrow as pa

from rudalle_lib import layout, registry, weight_files
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import DamagedError
from rudalle_lib.manifest import fingerprint
from rudalle_lib.records import NO_DEVICE, DeviceUse, Reason, ShardSpec, StageArtifact
from rudalle_lib.registry import Kind, ModelEntry
from rudalle_lib.storage import Storage

Refused = tuple[Reason, str]
"""Why a stage could not work on a prompt: the reason code, and the same for people."""

REFUSED = "refused"
"""Metadata of an artifact: the prompts that its stage could not work on."""

USE = "use"
"""Metadata of an artifact: how its stage came by its devices."""

REOPENED = "reopened"
"""Metadata of an artifact: prompts that its stage is asked to try once more; the rest is done."""

KINDS: Mapping[str, Kind] = {
    "translate": "translator",
    "generate": "decoder",
    "decode": "vqgan",
    "score": "scorer",
    "upscale": "upscaler",
    "cutout": "segmenter",
}
"""The kind of model that each stage with a model takes, in order."""

STAGES = (*KINDS, "publish")

VERSIONS: Mapping[str, int] = {"translate": 2, "generate": 2, "score": 2}
"""Raised when the code of a stage comes to make something else; 1 where it never did."""

IMAGE_ENCODER = "image_encoder"
"""What reads image prompts, among digests of weights by stage; only where it isn't the decoder of
pictures anyway."""

UPSTREAM: Mapping[str, tuple[str, ...]] = {
    "translate": (),
    "generate": ("translate",),
    "decode": ("generate",),
    "score": ("decode",),
    "upscale": ("decode",),
    "cutout": ("upscale",),
    "publish": ("score", "cutout"),
}
"""What the result of each stage is made from. Which pictures are enlarged is chosen by score, but
an enlarged picture depends on the drawn one alone; a stage that is off passes on what it got."""

IMAGE_PROMPTS = ("image_encoder", "crop_image_prompts")
"""Settings of `GenerateConfig` that matter only to shards with image prompts."""

SELECTION = ("min_score", "keep_best", "max_unsafe")
"""Settings of `ScoreConfig` that choose among scores and make none."""


def models(config: RunConfig) -> dict[str, ModelEntry]:
    """The registry entry of every stage that has a model; reads no weights.

    Raises:
        ConfigError: an unknown name, or a model of another kind than the stage takes.
    """
    off = stages_off(config)
    names = {stage: getattr(config, stage).model for stage in KINDS if stage not in off}
    return {stage: registry.get(name, KINDS[stage]) for stage, name in names.items() if name}


def stages_off(config: RunConfig) -> set[str]:
    """The stages that the run does without."""
    wanted = {
        "upscale": config.upscale.model is not None,
        "cutout": config.cutout.transparent,
    }
    return {stage for stage, on in wanted.items() if not on}


def weight_digests(config: RunConfig) -> dict[str, str]:
    """Digest of the weights of every stage that has a model; fetches files that are not here.

    Raises:
        ConfigError: as `models`.
        WeightsError: files that cannot be had or are not what the registry says.
    """
    entries = models(config)
    encoder = config.generate.image_encoder
    if encoder not in (None, config.decode.model):
        entries[IMAGE_ENCODER] = registry.get(str(encoder), "vqgan")
    return {
        stage: weight_files.digest(entry, weight_files.resolve_files(entry, config.weights))
        for stage, entry in entries.items()
    }


def fingerprints(config: RunConfig, weights: Mapping[str, str], shard: ShardSpec) -> dict[str, str]:
    """The fingerprint of every stage's result for one shard, from the first to the last.

    `weights` is what `weight_digests` gives. Equal fingerprints, equal results.
    """
    settings = {
        "translate": config.translate.identity(),
        "generate": config.generate.identity(exclude=IMAGE_PROMPTS)
        | {"seed": config.seed, "dtype": config.runtime.dtype}
        | (_image_prompts(config, weights) if shard.image_prompts else {}),
        "decode": config.decode.identity(),
        "score": config.score.identity(exclude=SELECTION),
        "upscale": config.upscale.identity(),
        "cutout": config.cutout.identity() if config.cutout.transparent else {},
        "publish": config.publish.identity() | config.score.model_dump(include=set(SELECTION)),
    }
    made: dict[str, str] = {}
    for stage in STAGES:
        upstream = [made[above] for above in UPSTREAM[stage]] or shard.fingerprint
        version = VERSIONS.get(stage, 1)
        made[stage] = fingerprint(stage, version, settings[stage], upstream, weights.get(stage))
    return made


def _image_prompts(config: RunConfig, weights: Mapping[str, str]) -> dict[str, object]:
    """What image prompts depend on, besides the rows that name them."""
    settings = config.generate.model_dump(include=set(IMAGE_PROMPTS))
    return settings | {"weights": weights.get(IMAGE_ENCODER, weights.get("decode"))}


def find_artifact(
    storage: Storage,
    stage: str,
    shard: ShardSpec,
    expected: str,
    notice: Callable[[str], None] = lambda _: None,
) -> StageArtifact | None:
    """What the stage made of the shard, if it is whole and has the expected fingerprint.

    `notice` is told of a damaged one, in a sentence; it counts as not there. One that was reopened
    (see `retrying`) does not count as finished either.
    """
    path = layout.stage_path(stage, shard.index)
    try:
        metadata = storage.read_metadata(path)
        if metadata is None and storage.exists(path):
            storage.read_table(path)  # says what is wrong with it
        if metadata is None or metadata.get("fingerprint") != expected or REOPENED in metadata:
            return None
        storage.read_table(path)
    except DamagedError as error:
        notice(f"{error} It is made again.")
        return None
    rows, seconds = int(metadata["rows"]), float(metadata["seconds"])
    use = json.loads(metadata.get(USE, "{}"))
    return StageArtifact(storage.url(path), expected, rows, seconds, **use)


def write_artifact(
    storage: Storage,
    stage: str,
    shard: ShardSpec,
    fingerprint: str,
    table: pa.Table,
    seconds: float,
    use: DeviceUse = NO_DEVICE,
) -> StageArtifact:
    """Write what a stage made of a shard; `seconds` is what making it took, `use` on what."""
    path, seconds = layout.stage_path(stage, shard.index), round(seconds, 3)
    metadata = {"fingerprint": fingerprint, "rows": str(table.num_rows), "seconds": str(seconds)}
    held = asdict(use)
    storage.write_table(path, table, {**metadata, USE: json.dumps(held)})
    return StageArtifact(storage.url(path), fingerprint, table.num_rows, seconds, **held)


def with_refused(table: pa.Table, refused: Mapping[str, Refused]) -> pa.Table:
    """The table of a stage that could not work on some prompts: those, by id, and why."""
    return table.replace_schema_metadata(
        {**(table.schema.metadata or {}), REFUSED: json.dumps(refused)}
    )


def refused_in(table: pa.Table) -> dict[str, Refused]:
    """The prompts that the stage could not work on, by id."""
    stored = (table.schema.metadata or {}).get(REFUSED.encode(), b"{}")
    return {
        prompt_id: (reason, detail) for prompt_id, (reason, detail) in json.loads(stored).items()
    }


def read_artifact(storage: Storage, artifact: StageArtifact) -> pa.Table:
    """The table of an artifact.

    Raises:
        StorageError: it is gone or damaged.
    """
    return storage.read_table(storage.relative(artifact.uri))
