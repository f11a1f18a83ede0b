"""Checks before a run starts: they find in seconds what would otherwise fail hours later."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

from rudalle_lib.comparison.outputs import check_installed
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.dataset.ownership import FOLDERS, check_ours
from rudalle_lib.errors import ConfigError, SettingsError
from rudalle_lib.pipeline.rerender import DRAWN_STAGES, rerender_weights
from rudalle_lib.pipeline.stages import IMAGE_ENCODER, models_without, weight_digests
from rudalle_lib.prompts.rows import EXTRA, PromptBlock, read_table
from rudalle_lib.registry import ModelEntry
from rudalle_lib.schema.records import Overrides
from rudalle_lib.selection.groups import read_min_scores
from rudalle_lib.storage import bounds
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.probes import check_writable
from rudalle_lib.storage.storage import Storage
from rudalle_lib.weights.files import resolve_files
from rudalle_lib.weights.passed_checks import check_once

DECODER_LANGUAGE = "ru"
"""Language of the prompts that the decoders were trained on."""

Check = tuple[list[Any], Callable[[], None]]
"""All that the result of a check depends on, as plain JSON values; and the check, which raises."""


def check_allowed(config: RunConfig) -> None:
    """Check what a configuration names against the bounds in the environment.

    Raises:
        SettingsError: `RUDALLE_ALLOW_INPUTS` or another variable does not allow it.
    """
    cluster = config.runtime.ray_address
    if cluster is not None and "://" not in cluster and cluster not in ("auto", "local"):
        cluster = f"ray://{cluster}"
    tables = [
        (f"select.rules.{number}.min_scores", rule.min_scores, bounds.INPUTS)
        for number, rule in enumerate(config.select.rules)
    ]
    own = [
        (f"weights.models.{name}.folder", one.folder, bounds.INPUTS)
        for name, one in config.weights.models.items()
    ]
    for key, place, variable in (
        *tables,
        ("prompts.uri", config.prompts.uri, bounds.INPUTS),
        ("weights.folder", config.weights.folder, bounds.INPUTS),
        *own,
        ("output", config.output, bounds.OUTPUTS),
        ("weights.endpoint", config.weights.endpoint, bounds.ENDPOINTS),
        ("runtime.ray_address", cluster, bounds.ENDPOINTS),
        *(("select.rules.against", url, bounds.INPUTS) for url in config.select.against),
    ):
        try:
            if place not in (None, "auto", "local"):
                bounds.check_allowed(str.__str__(place), variable)
        except bounds.BoundsError as error:
            raise SettingsError(f"{key} is {public_url(str(place))}: {error}") from None


def check_inputs(config: RunConfig) -> None:
    """Check model names, the first rows of the prompt table and tables of rules; loads no weights.

    Raises:
        SettingsError: The environment does not allow what the configuration names.
        ConfigError: A model is unknown or of another kind, a translator has other languages, a
            table of minimum scores cannot be used, a package of an extra is missing, or the table
            has no column of a name.
        PromptError: The table cannot be parsed, or has no column of prompts.
        StorageError: The table does not exist or cannot be read.
    """
    check_allowed(config)
    if config.publish.compare_with is not None:
        check_installed()
    _check_languages(config, models_without(config)["translate"])
    check_extras(config)
    _check_groups(config, next(read_table(config.prompts, 1), None))
    for rule in config.select.rules:
        if rule.min_scores is not None:
            read_min_scores(rule.min_scores)


def _check_groups(config: RunConfig, first: PromptBlock | None) -> None:
    column = config.publish.yield_by
    if column is None or first is None:
        return
    names = [name.removeprefix(EXTRA) for name in first.prompts.column_names if EXTRA in name]
    if column not in names:
        raise ConfigError(
            f"publish.yield_by names no column of {public_url(config.prompts.uri)} that is passed "
            f"through: expected one of {', '.join(names) or '(it has none)'}, found {column!r}"
        )


def check_extras(config: RunConfig) -> None:
    """Check that the optional packages that a configuration needs are installed.

    Raises:
        SettingsError: One is missing; says how to install it.
    """
    second = config.score.second_model or ""
    for wanted, key, package, extra in (
        (config.score.hashes, "score.hashes", "imagehash", "duplicates"),
        (config.select.finds_alike, "select.rules", "faiss", "duplicates"),
        (second.startswith("open_clip:"), "score.second_model", "open_clip", "open-clip"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise SettingsError(
                f"{key} needs the package {package}, which is not installed: "
                f"pip install 'rudalle-flows[{extra}]'"
            )


def _check_languages(config: RunConfig, translator: ModelEntry) -> None:
    source, target = translator.languages
    if target != DECODER_LANGUAGE:
        raise SettingsError(
            f"translate.model, {translator.name}, translates into {target!r}, but the decoder "
            f"needs {DECODER_LANGUAGE!r}; choose for example opus-mt-{source}-{DECODER_LANGUAGE}"
        )
    if config.translate.language not in ("auto", DECODER_LANGUAGE, source):
        raise SettingsError(
            f"translate.language is {config.translate.language!r}, but translate.model, "
            f"{translator.name}, translates from {source!r}; expected auto, {DECODER_LANGUAGE} or "
            f"{source}, or another model, such as "
            f"opus-mt-{config.translate.language}-{DECODER_LANGUAGE}"
        )


def check_divisible(config: RunConfig) -> None:
    """Check that runs may make a dataset together, each of them some of its shards.

    Raises:
        ConfigError: A rule compares images of different shards.
    """
    if config.select.looks_across:
        raise ConfigError(
            "select.rules compare images of different shards, so one run must see all of them: run "
            "without --shards, or give the rules a group within prompts."
        )


def check_run(config: RunConfig, output: bool = True) -> dict[str, str]:
    """Check everything that a run needs, the cheapest checks first.

    Nothing is left behind: only a small temporary file is written to the output.

    Args:
        config: Configuration of the run.
        output: Whether to check that the output can be written.

    Returns:
        Digests of the weights by stage, for stages that have a model.

    Raises:
        ConfigError: See `check_inputs`.
        PromptError: See `check_inputs`.
        SettingsError: The machine lacks a device or precision, the decoder cannot draw the canvas,
            or it was not trained with the VQ-GAN.
        StorageError: The table cannot be read, or the output cannot be written.
        WeightsError: Weights are not available, or a file of a model is something else.
    """
    check_inputs(config)
    _check_devices(config)
    if output:
        _check_output(config)
    digests = weight_digests(config)
    check_models(config, digests)
    return digests


def check_rerender(source: Storage, config: RunConfig) -> dict[str, str]:
    """Check everything that rendering a dataset again needs; no decoder and no prompt table.

    Args:
        source: the dataset whose tokens are rendered.
        config: of the new one, see `pipeline.rerender`.

    Returns:
        Digests of the weights by stage.

    Raises:
        RudalleError: see `check_run`.
    """
    check_allowed(config)
    _check_devices(config)
    _check_output(config)
    digests = rerender_weights(source, config)
    check_weights(config, digests, without=DRAWN_STAGES)
    return digests


def _check_devices(config: RunConfig) -> None:
    from rudalle_lib.runtime.devices import resolve_devices, resolve_dtype  # imports torch

    on_cluster = config.runtime.runner == "ray" and config.runtime.ray_address is not None
    for device in [] if on_cluster else resolve_devices(config.runtime.devices):
        for section in (config.runtime, config.decode, config.score, config.upscale):
            resolve_dtype(section.dtype, device)


def _check_output(config: RunConfig) -> None:
    storage = Storage(config.output)
    check_ours(storage)
    check_writable(storage, FOLDERS)


def check_models(config: RunConfig, digests: Mapping[str, str]) -> None:
    """Check that the files of all models are what they should be, and fit together.

    Importing torch takes seconds, so what has passed before is not checked again.

    Args:
        config: Configuration of the run.
        digests: Those of its weights, see `stages.weight_digests`.

    Raises:
        SettingsError, WeightsError: See `check_fit` and `check_weights`.
    """
    for what, check in model_checks(config, digests):
        check_once(what, check)


def model_checks(config: RunConfig, digests: Mapping[str, str]) -> Iterator[Check]:
    """The checks of the models of a run: that they fit together, then each one's files.

    Args:
        config: Configuration of the run.
        digests: Those of its weights, see `stages.weight_digests`.
    """
    drawing = config.generate
    canvas = [drawing.width, drawing.height, drawing.size_unit]
    fitting = [digests.get(name) for name in ("generate", "decode", IMAGE_ENCODER)]
    yield ["fit", *fitting, *canvas], lambda: check_fit(config)
    yield from weights_checks(config, digests)


def weights_checks(
    config: RunConfig, digests: Mapping[str, str], without: Collection[str] = ()
) -> Iterator[Check]:
    """The check of each model's files, see `check_weights`."""
    for stage, entry in models_without(config, without).items():
        yield ["files", entry.kind, digests[stage]], partial(_check_files, entry, config.weights)


def _check_files(entry: ModelEntry, weights: WeightsConfig) -> None:
    from rudalle_lib.weights.model_files import check_files  # imports torch

    check_files(entry, resolve_files(entry, weights))


def check_fit(config: RunConfig) -> None:
    """Check that canvas, decoder and VQ-GANs fit together; reads their configurations, no tensors.

    Raises:
        SettingsError: They do not fit.
        WeightsError: Files are not available, or describe another network.
    """
    from rudalle_lib.generation.canvas import Canvas, choose_canvas  # import torch
    from rudalle_lib.models.dalle import DalleConfig
    from rudalle_lib.models.vqgan import VqGanConfig
    from rudalle_lib.weights.loading import network_config

    entry = config.weights.find(config.generate.model, "decoder")
    decoder = network_config(entry, resolve_files(entry, config.weights), DalleConfig)
    try:
        choose_canvas(
            config.generate, Overrides(), Canvas(decoder.image_height, decoder.image_width)
        )
    except SettingsError as error:
        raise SettingsError(f"generate.{error}") from None
    encoder = config.generate.image_encoder or config.decode.model
    for key, name in (("decode.model", config.decode.model), ("generate.image_encoder", encoder)):
        vqgan = config.weights.find(name, "vqgan")
        codes = network_config(vqgan, resolve_files(vqgan, config.weights), VqGanConfig).n_embed
        if codes != decoder.image_vocab_size:
            raise SettingsError(
                f"{key}, {name}, does not fit generate.model, {entry.name}: expected "
                f"{decoder.image_vocab_size:,} codes, found {codes:,}; choose the VQ-GAN that the "
                "decoder was trained with"
            )


def check_weights(
    config: RunConfig, digests: Mapping[str, str], without: Collection[str] = ()
) -> None:
    """Check the files of the models of all stages, unless they have passed; loads no tensors.

    Args:
        config: Configuration of the run.
        digests: Those of its weights, see `stages.weight_digests`.
        without: Stages whose models are not checked.

    Raises:
        WeightsError: A file is not available, is something else, is damaged or unsafe, or does not
            fit its network.
    """
    for what, check in weights_checks(config, digests, without):
        check_once(what, check)
