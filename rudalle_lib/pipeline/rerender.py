"""Rerender: a new dataset from the image tokens of another one; nothing is drawn again.

The new output gets the plan, the texts and the tokens of the source, and every later artifact that
the changed settings leave as it is. A run of it then finds these stages finished. `lineage.json`
says where they come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from rudalle_lib.config.messages import error_from_validation
from rudalle_lib.config.overrides import apply_overrides
from rudalle_lib.config.precision import record_precisions
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.lineage import read_lineage, write_lineage
from rudalle_lib.dataset.manifests import read_shard_manifests, require_run_manifest
from rudalle_lib.dataset.rejects import plan_reject_files
from rudalle_lib.errors import ConfigError, SettingsError, ShardError, StorageError
from rudalle_lib.humanize import counted
from rudalle_lib.pipeline.artifacts import USE, find_artifact, stage_path
from rudalle_lib.pipeline.recorded_run import recorded_config, recorded_weights
from rudalle_lib.pipeline.stages import (
    CONFIDENCE,
    IMAGE_ENCODER,
    ROUNDS,
    STAGES,
    fingerprints,
    weight_digests,
)
from rudalle_lib.prompts.plan import Plan, read_plan
from rudalle_lib.schema.lineage import Lineage
from rudalle_lib.schema.records import DeviceUse, RunManifest, ShardManifest, ShardSpec
from rudalle_lib.storage.storage import Storage
from rudalle_lib.weights.files import resolve_files

DRAWN_STAGES = ("translate", "generate")
"""Stages whose results a rerendered dataset shares with its source."""

PROBE = ShardSpec(0, "", 1, "", image_prompts=True)
"""A shard whose identity has every setting that any shard's has."""

COPIES = 8
"""Shards, or plan files, copied concurrently."""


# --- settings ----------------------------------------------------------------------------------


def rerender_config(source: Storage, output: str, overrides: Iterable[str]) -> RunConfig:
    """The configuration of a new dataset from the tokens of another one.

    Args:
        source: the finished dataset.
        output: where the new one will be.
        overrides: settings that differ, such as `decode.model=vqgan-f8-dwt`.

    Raises:
        ConfigError: a setting is not valid or would change the tokens, or the output is the source.
        StorageError, ShardError: no run has finished in the source.
    """
    run = require_run_manifest(source)
    before = recorded_config(source, run)
    data = apply_overrides(before.public_dict(), overrides, RunConfig)
    try:
        config = RunConfig.model_validate({**data, "output": output})
    except pydantic.ValidationError as error:
        raise error_from_validation(error, RunConfig, source.public_path("run.json")) from None
    _check_elsewhere(source, Storage(config.output))
    fixed = sorted({*_changed_identity(before, config), *_changed_prompts(before, config)})
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)} would change the image tokens, which are those of "
            f"{source.public_path()}: set only what comes after drawing (decode, score, upscale, "
            "cutout, publish), or make a new dataset with `rudalle-flows run`."
        )
    return config


def _check_elsewhere(source: Storage, target: Storage) -> None:
    if f"{target.url()}/".startswith(f"{source.url()}/"):
        raise ConfigError(
            f"The new dataset cannot be in {target.public_path()}, which is in its source "
            f"{source.public_path()}; name another folder."
        )


def _changed_identity(before: RunConfig, config: RunConfig) -> list[str]:
    """The keys that the tokens depend on and that differ."""
    own_names = {
        "seed": "seed", "dtype": "runtime.dtype", ROUNDS: "generate.until_accepted",
        CONFIDENCE: f"translate.{CONFIDENCE}",
    }  # fmt: skip
    keys = []
    for stage in DRAWN_STAGES:
        was, now = (STAGES[stage].identity(one, {}, PROBE) for one in (before, config))
        differing = [key for key in {**was, **now} if was.get(key) != now.get(key)]
        keys += [own_names.get(key, f"{stage}.{key}") for key in differing]
    return keys


def _changed_prompts(before: RunConfig, config: RunConfig) -> list[str]:
    return [key for key in changed_settings(before, config) if key.startswith("prompts.")]


def changed_settings(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, except the output: the value before and now, by key."""
    was, new = (_flat(one.public_dict()) for one in (before, now))
    keys = sorted({*was, *new} - {"output"})
    return {key: (was.get(key), new.get(key)) for key in keys if was.get(key) != new.get(key)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def rerender_weights(source: Storage, config: RunConfig) -> dict[str, str]:
    """The digest of the weights by stage: of stages that run, and as recorded for the others.

    The decoder and the translator need not be on this machine.

    Raises:
        WeightsError: weights of a stage that runs are not available.
        RudalleError: `run.json` does not record the weights that drew the tokens.
    """
    run = require_run_manifest(source)
    recorded = recorded_weights(run, recorded_config(source, run))
    digests = {stage: recorded[stage] for stage in DRAWN_STAGES}
    digests |= weight_digests(config, without=DRAWN_STAGES)
    if config.generate.image_encoder not in (None, config.decode.model):
        digests[IMAGE_ENCODER] = recorded.get(IMAGE_ENCODER, recorded["decode"])
    return digests


# --- copying -----------------------------------------------------------------------------------


def seed_output(
    source: Storage, config: RunConfig, weights: Mapping[str, str], term: int = 0
) -> Plan:
    """Copy plan, texts and tokens to a new output, whose lease must be held.

    What is there already is not copied again, so it can be repeated after an interruption, and
    after the source has grown.

    Args:
        source: the finished dataset.
        config: from `rerender_config`.
        weights: from `rerender_weights`.
        term: of the lease that is held.

    Returns:
        The plan, with all its prompts as known ones.

    Raises:
        ShardError: shards of the source are not finished, or were drawn with other settings.
        StorageError: tokens are gone, or the output holds another dataset.
        SettingsError: the VQ-GAN has fewer codes than the tokens.
    """
    run, shards = require_run_manifest(source), read_plan(source)
    manifests = {manifest.index: manifest for manifest in read_shard_manifests(source)}
    _check_finished(source, run, shards, manifests)
    target = Storage(config.output)
    _claim(target, _lineage(source, run, config))
    record_precisions(target, config.precisions())
    paths = [source.relative(shard.plan_uri) for shard in shards]
    for start in range(0, len(paths), COPIES):
        group = paths[start : start + COPIES]
        target.create_many(dict(zip(group, source.read_many(group), strict=True)))
    for path in plan_reject_files(source):
        target.write_bytes(path, source.read_bytes(path))
    copier = _Copier(source, target, config, weights, term)
    with ThreadPoolExecutor(COPIES) as pool:
        for _ in pool.map(copier.copy, shards, [manifests[shard.index] for shard in shards]):
            pass
    target.sync()
    planned = tuple(read_plan(target))
    return Plan(planned, (), 0, 0, source.public_path(), sum(one.rows for one in planned), {}, 0)


def _check_finished(
    source: Storage,
    run: RunManifest,
    shards: Sequence[ShardSpec],
    manifests: Mapping[int, ShardManifest],
) -> None:
    missing = [shard for shard in shards if shard.index not in manifests]
    if missing:
        raise ShardError(
            f"{len(missing):,} of {counted(len(shards), 'shard')} of {source.public_path()} are "
            "not finished; finish its run first."
        )
    before = recorded_config(source, run)
    weights = recorded_weights(run, before)
    for shard in shards:
        expected, stages = fingerprints(before, weights, shard), manifests[shard.index].stages
        if any(stages[stage].fingerprint != expected[stage] for stage in DRAWN_STAGES):
            raise ShardError(
                f"Shard {shard.index:05d} of {source.public_path()} was drawn with other settings "
                f"than {layout.RUN_MANIFEST} records; finish its run first."
            )


def _lineage(source: Storage, run: RunManifest, config: RunConfig) -> Lineage:
    changes = changed_settings(recorded_config(source, run), config)
    digest = sha256(source.read_bytes(layout.RUN_MANIFEST)).hexdigest()
    return Lineage(source.public_path(), run.name, run.finished, digest, changes)


def _claim(target: Storage, lineage: Lineage) -> None:
    """Write `lineage.json`, unless the output is that of another dataset."""
    earlier = read_lineage(target)
    if earlier is None and target.list(layout.PLAN_FOLDER):
        raise StorageError(
            f"{target.public_path()} holds a dataset that was drawn there; choose a new folder."
        )
    if earlier is not None and earlier.source != lineage.source:
        raise StorageError(
            f"{target.public_path()} was rendered from {earlier.source}, not from "
            f"{lineage.source}; choose a new folder."
        )
    write_lineage(target, lineage)


class _Copier:
    """Copies the artifacts of shards that a new dataset shares with its source."""

    def __init__(
        self,
        source: Storage,
        target: Storage,
        config: RunConfig,
        weights: Mapping[str, str],
        term: int,
    ) -> None:
        self._source, self._target, self._term = source, target, term
        self._config, self._weights = config, weights
        self._found = set(source.list(layout.STAGES_FOLDER))
        self._codes = _codes(config)

    def copy(self, shard: ShardSpec, manifest: ShardManifest) -> None:
        """Copy the artifacts of a shard that the new settings leave as they are."""
        expected = fingerprints(self._config, self._weights, shard)
        for stage, artifact in manifest.stages.items():
            path = self._source.relative(artifact.uri)
            if stage in DRAWN_STAGES and path not in self._found:
                raise StorageError(
                    f"{self._source.public_path(path)} is gone, so shard {shard.index:05d} cannot "
                    "be rendered again; run the source again to make it."
                )
            same = artifact.fingerprint == expected[stage] and path in self._found
            if stage in DRAWN_STAGES and not same:
                raise ShardError(
                    f"Shard {shard.index:05d} has image prompts, which another VQ-GAN than "
                    f"{self._config.generate.image_encoder} of today has read; it cannot be "
                    "rendered again."
                )
            if stage != "publish" and same:
                self._copy(stage, shard, path, artifact.fingerprint, artifact.batch_rows)

    def _copy(
        self, stage: str, shard: ShardSpec, path: str, fingerprint: str, batch_rows: int
    ) -> None:
        """Copy an artifact; its time and its devices are those of the source, so they are left out.

        Batch rows are kept: on a GPU they decide the last bits of a replayed image.
        """
        if find_artifact(self._target, stage, shard, fingerprint, term=self._term) is not None:
            return
        table, metadata = self._source.read_table(path), self._source.read_metadata(path) or {}
        if stage == "generate":
            self._check_codes(table)
        use = json.dumps(asdict(DeviceUse(batch_rows=batch_rows)))
        to = stage_path(stage, shard, fingerprint, self._term)
        self._target.write_table(to, table, {**metadata, "seconds": "0.0", USE: use})

    def _check_codes(self, table: pa.Table) -> None:
        highest = pc.max(pc.list_flatten(table.column("tokens"))).as_py()
        if highest is not None and highest >= self._codes:
            raise SettingsError(
                f"decode.model, {self._config.decode.model}, has {self._codes:,} codes, but the "
                f"image tokens of {self._source.public_path()} go up to {highest:,}; choose a "
                "VQ-GAN that the decoder was trained with."
            )


def _codes(config: RunConfig) -> int:
    """The number of codes of the VQ-GAN that decodes images."""
    from rudalle_lib.models.vqgan import VqGanConfig  # imports torch
    from rudalle_lib.weights.loading import network_config

    entry = config.weights.find(config.decode.model, "vqgan")
    return network_config(entry, resolve_files(entry, config.weights), VqGanConfig).n_embed
