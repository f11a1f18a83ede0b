"""Checks before a fine-tuning starts: they find in seconds what would fail hours later."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.ownership import FOLDERS, check_ours
from rudalle_lib.errors import DataError, SettingsError, StorageError
from rudalle_lib.registry import ModelEntry
from rudalle_lib.storage import bounds
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.probes import check_writable
from rudalle_lib.storage.storage import Storage
from rudalle_lib.storage.urls import is_local_url
from rudalle_lib.weights.files import digest, resolve_files

PACKAGES = ("accelerate", "peft", "tensorboard")
"""What the extra `train` brings along."""


def used_models(config: FineTuneConfig) -> dict[str, ModelEntry]:
    """The models that a fine-tuning uses, by the key that names them.

    Raises:
        ConfigError: there is no such model, or it is of another kind.
    """
    found = {"base": config.weights.find(config.base_model, config.trains)}
    if config.trains == "decoder":
        found["vqgan"] = config.weights.find(config.vqgan, "vqgan")
    return found


def check_fine_tune(config: FineTuneConfig, output: bool = True) -> dict[str, str]:
    """Check everything that a fine-tuning needs, the cheapest checks first.

    Nothing is left behind: only a small temporary file is written to the output.

    Args:
        config: the fine-tuning.
        output: whether to check that the output can be written.

    Returns:
        Digests of the weights that it uses, by name.

    Raises:
        ConfigError: a model is unknown or of another kind.
        SettingsError: the environment does not allow what the configuration names, a package is
            missing, the VQ-GAN is not that of the decoder, or it cannot be trained.
        DataError: a dataset is not recognised, or has no row.
        StorageError: a dataset cannot be read, or the output cannot be written.
        WeightsError: weights are not available, or a file of a model is something else.
    """
    _check_allowed(config)
    models = used_models(config)
    _check_packages()
    _check_steps(config)
    _check_device(config)
    storage = Storage(config.output)
    if output:
        _check_output(storage)
    digests = _check_weights(config, models)
    _check_data(config)
    return digests


def _check_allowed(config: FineTuneConfig) -> None:
    for key, place, variable in _places(config):
        try:
            if place is not None:
                bounds.check_allowed(str.__str__(place), variable)
        except bounds.BoundsError as error:
            raise SettingsError(f"{key} is {public_url(str(place))}: {error}") from None


def _places(config: FineTuneConfig) -> Iterator[tuple[str, str | None, str]]:
    for number, source in enumerate(config.data):
        yield f"data.{number}.uri", source.uri, bounds.INPUTS
    for name, one in config.weights.models.items():
        yield f"weights.models.{name}.folder", one.folder, bounds.INPUTS
    yield "weights.folder", config.weights.folder, bounds.INPUTS
    yield "weights.endpoint", config.weights.endpoint, bounds.ENDPOINTS
    yield "output", config.output, bounds.OUTPUTS
    yield "export_folder", config.export_folder, bounds.OUTPUTS


def _check_packages() -> None:
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise SettingsError(
                f"fine-tune needs the package {package}, which is not installed: "
                "pip install 'rudalle-flows[train]'"
            )


def _check_steps(config: FineTuneConfig) -> None:
    """Check that a VQ-GAN or a ruCLIP can make steps as the settings say."""
    from rudalle_lib.training.scorer import check_batch  # imports torch and peft
    from rudalle_lib.training.vqgan import check_splits

    training, size = config.training, config.training.batch_size
    if config.trains == "vqgan":
        check_splits(training)
    if config.trains != "scorer":
        return
    check_batch(training)
    at_once, count = training.images_at_once or size, config.runtime.processes or 1
    for key, found, fits, expected in (
        ("training.images_at_once", at_once, at_once >= size, f"null or {size}"),
        ("runtime.processes", count, count == 1, "1"),
    ):
        if not fits:
            raise SettingsError(
                f"{key} is {found}, and a ruCLIP compares all images of a step with each other; "
                f"expected {expected}"
            )


def _check_device(config: FineTuneConfig) -> None:
    from rudalle_lib.runtime.devices import resolve_devices  # imports torch

    devices, processes = resolve_devices(config.runtime.devices), config.runtime.processes
    on_gpus = devices[0].type == "cuda"
    if processes is not None and on_gpus and processes > len(devices):
        raise SettingsError(
            f"runtime.processes is {processes}, but this machine has {len(devices)} GPUs; each "
            "process needs one of its own"
        )


def process_count(config: FineTuneConfig) -> int:
    """The number of processes that train together."""
    from rudalle_lib.runtime.devices import resolve_devices  # imports torch

    devices = resolve_devices(config.runtime.devices)
    alone = config.trains == "scorer"  # its loss compares all images of a step
    return config.runtime.processes or (1 if alone else len(devices))


def _check_output(storage: Storage) -> None:
    check_ours(storage)
    found = set(storage.entries())
    dataset = found & {layout.RUN_MANIFEST, layout.PLAN_FOLDER, layout.SHARDS_FOLDER}
    if dataset:
        raise StorageError(
            f"{storage.public_path()} is the output of a dataset: it has {min(dataset)}. Choose "
            "another folder, and name this one as data to learn from it."
        )
    check_writable(storage, FOLDERS)


def _check_weights(config: FineTuneConfig, models: dict[str, ModelEntry]) -> dict[str, str]:
    from rudalle_lib.models.dalle import DalleConfig  # imports torch
    from rudalle_lib.models.vqgan import VqGanConfig
    from rudalle_lib.training.vqgan import check_reconstructs
    from rudalle_lib.weights.loading import network_config
    from rudalle_lib.weights.model_files import check_files

    files = {key: resolve_files(entry, config.weights) for key, entry in models.items()}
    for key, entry in models.items():
        check_files(entry, files[key])
    if config.trains == "vqgan":
        sizes = network_config(models["base"], files["base"], VqGanConfig)
        check_reconstructs(sizes, f"base, {models['base'].name},")
    if "vqgan" in models:
        decoder = network_config(models["base"], files["base"], DalleConfig)
        codes = network_config(models["vqgan"], files["vqgan"], VqGanConfig).n_embed
        if codes != decoder.image_vocab_size:
            raise SettingsError(
                f"vqgan, {models['vqgan'].name}, does not fit base, {models['base'].name}: "
                f"expected {decoder.image_vocab_size:,} codes, found {codes:,}; choose the VQ-GAN "
                "that the decoder was trained with"
            )
    return {entry.name: digest(entry, files[key]) for key, entry in models.items()}


def _check_data(config: FineTuneConfig) -> None:
    """Check that each dataset is recognised and has a row."""
    from rudalle_lib.training.data.sources import read_rows

    for source in config.data:
        if next(read_rows(source, config.trains != "vqgan"), None) is None:
            raise DataError(f"{public_url(source.uri)} is empty; expected images.")


def export_folder(config: FineTuneConfig, root: Path) -> Path:
    """The folder of the new weights on this machine; `root` is that of the output."""
    parent = root / "weights" if config.export_folder is None else Path(config.export_folder)
    return parent / config.name


def public_export_folder(config: FineTuneConfig) -> str:
    """The path or URL of the new weights, without secrets."""
    if config.export_folder is not None:
        return str(Path(config.export_folder).absolute() / config.name)
    storage = Storage(config.output)
    path = storage.public_path(f"weights/{config.name}")
    return str(Path(path)) if is_local_url(storage.url()) else path
