"""The run that `run.json` records: its configuration and weights, to repeat it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.lineage import read_lineage
from rudalle_lib.dataset.manifests import (
    read_run_manifest,
    read_shard_manifests,
    totals,
)
from rudalle_lib.dataset.rejects import count_plan_rejects
from rudalle_lib.errors import ConfigError, RudalleError, ShardError, WeightsError
from rudalle_lib.pipeline.stages import other_models, stage_models
from rudalle_lib.prompts.plan import read_tables
from rudalle_lib.schema.decisions import NOTHING_ELSE, SelectionRecord
from rudalle_lib.schema.records import DataFile, RunManifest
from rudalle_lib.storage.storage import Storage


def recorded_config(storage: Storage, run: RunManifest) -> RunConfig:
    """The configuration of a run, with the output where it is now.

    Raises:
        ConfigError: it has settings that this version does not know.
    """
    try:
        return RunConfig.model_validate({**run.config, "output": storage.url()})
    except ValueError as error:
        first = " ".join(str(error).split())[:200]
        version = run.versions.get("rudalle-flows", "another version")
        raise ConfigError(
            f"The configuration in {storage.public_path(layout.RUN_MANIFEST)} is of rudalle-flows "
            f"{version}, and this version cannot use it: {first}"
        ) from None


def restricted(config: RunConfig, fetch_weights: bool, private_hosts: bool) -> RunConfig:
    """The configuration of a dataset that may be a stranger's, without what it may not do.

    Args:
        config: the recorded configuration.
        fetch_weights: whether weights may be downloaded from where it says; otherwise only those
            on this machine are used.
        private_hosts: whether it may allow image prompts from private networks.
    """
    weights, prompts = config.weights, config.prompts
    if not fetch_weights:
        weights = weights.model_copy(update={"offline": True})
    if not private_hosts:
        prompts = prompts.model_copy(update={"allow_private_hosts": False})
    return config.model_copy(update={"weights": weights, "prompts": prompts})


@contextmanager
def naming_option(fetch_weights: bool) -> Iterator[None]:
    """Name the option that downloads weights in errors about weights that are not here.

    Raises:
        WeightsError: weights are not available.
    """
    try:
        yield
    except WeightsError as error:
        if fetch_weights:
            raise
        raise WeightsError(
            f"{error}. What a dataset names is downloaded only with the option --fetch-weights"
        ) from None


def recorded_weights(run: RunManifest, config: RunConfig) -> dict[str, str]:
    """The digest of the weights by stage, as `pipeline.stages.weight_digests` returned them.

    Raises:
        RudalleError: the configuration names a model whose digest is not recorded.
    """
    models = stage_models(config) | other_models(config)
    names = {stage: entry.name for stage, entry in models.items()}
    missing = sorted({name for name in names.values() if name not in run.weights})
    if missing:
        raise RudalleError(f"{layout.RUN_MANIFEST} has no digest of {', '.join(missing)}.")
    return {stage: run.weights[name] for stage, name in names.items()}


def current_report(
    storage: Storage,
    config: RunConfig,
    shards_planned: int,
    selection: SelectionRecord = NOTHING_ELSE,
) -> RunManifest | None:
    """The run manifest of an output, if it describes this run and everything in the output.

    Args:
        storage: the output.
        config: the run.
        shards_planned: number of shards in the plan.
        selection: what decides which images are kept, beside the settings of `score`.
    """
    try:
        run = read_run_manifest(storage)
    except ShardError:  # damaged: it is made again
        return None
    if run is None or (run.config_digest, run.shards_planned) != (config.digest(), shards_planned):
        return None
    manifests = read_shard_manifests(storage)
    if run.term < max((manifest.term for manifest in manifests), default=0):
        return None
    sums = totals(manifests, count_plan_rejects(storage))
    if run.totals != sums or run.tables != read_tables(storage):
        return None
    if run.lineage != read_lineage(storage):
        return None
    if (run.selection.curation, run.selection.digest) != (selection.curation, selection.digest):
        return None
    return run if all(is_intact(storage, file) for file in run.files.values()) else None


def is_intact(storage: Storage, file: DataFile) -> bool:
    """Whether a file is what a manifest describes; merged files are not read, as they are large."""
    name = layout.parse(file.path)
    if name is not None and name.kind == "merged":
        return is_there(storage, file)
    content = storage.read_bytes_if_any(file.path)
    return content is not None and DataFile.of(file.path, content) == file


def is_there(storage: Storage, file: DataFile) -> bool:
    """Whether a file exists and has the size that is known of it; its content is not read."""
    return storage.exists(file.path) and storage.size(file.path) == file.bytes
