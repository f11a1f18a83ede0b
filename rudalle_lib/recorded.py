"""What `run.json` says that a run was: its configuration and weights, to ask for the same again."""

from __future__ import annotations

from rudalle_lib import layout
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import ConfigError, RudalleError, StorageError
from rudalle_lib.manifest import read_run_manifest
from rudalle_lib.records import RunManifest
from rudalle_lib.stages import IMAGE_ENCODER, models
from rudalle_lib.storage import Storage


def read_recorded_run(storage: Storage) -> RunManifest:
    """The manifest of the last run that ended.

    Raises:
        StorageError: there is none.
        ShardError: it is damaged.
    """
    run = read_run_manifest(storage)
    if run is None:
        raise StorageError(
            f"There is no finished run in {storage.public_path()}: expected {layout.RUN_MANIFEST}. "
            "Give the output of `rudalle-flows run`."
        )
    return run


def recorded_config(storage: Storage, run: RunManifest) -> RunConfig:
    """The configuration of a run, with the output where it lies now.

    Raises:
        ConfigError: it was written by a version whose settings this one does not know.
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


def recorded_weights(run: RunManifest, config: RunConfig) -> dict[str, str]:
    """The digest of the weights by stage, as `stages.weight_digests` gave them to the run.

    Raises:
        RudalleError: the configuration names a model whose digest is not recorded.
    """
    names = {stage: entry.name for stage, entry in models(config).items()}
    encoder = config.generate.image_encoder
    if encoder not in (None, config.decode.model):
        names[IMAGE_ENCODER] = str(encoder)
    missing = sorted({name for name in names.values() if name not in run.weights})
    if missing:
        raise RudalleError(f"{layout.RUN_MANIFEST} has no digest of {', '.join(missing)}.")
    return {stage: run.weights[name] for stage, name in names.items()}
