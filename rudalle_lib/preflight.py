"""Everything that can be known to be wrong before a run starts: seconds instead of a lost night."""

from __future__ import annotations

from rudalle_lib import registry
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.prompts import read_prompt_blocks
from rudalle_lib.records import Overrides
from rudalle_lib.registry import ModelEntry
from rudalle_lib.stages import models, weight_digests
from rudalle_lib.storage import Storage
from rudalle_lib.weight_files import resolve_files

DECODER_LANGUAGE = "ru"


def check_inputs(config: RunConfig) -> None:
    """Check model names and the head of the prompt table; cheap, loads nothing heavy.

    Raises:
        ConfigError: a model that is unknown or of another kind, or a translator of other languages.
        PromptError: a table that is no such table, or lacks the column of prompts.
        StorageError: a table that is not there.
    """
    _check_languages(config, models(config)["translate"])
    next(read_prompt_blocks(config.prompts.uri, config.prompts.columns, 1), None)


def _check_languages(config: RunConfig, translator: ModelEntry) -> None:
    source, target = translator.languages
    if target != DECODER_LANGUAGE:
        raise SettingsError(
            f"translate.model, {translator.name}, writes {target!r}, but the decoder reads "
            f"{DECODER_LANGUAGE!r}; choose for example opus-mt-{source}-{DECODER_LANGUAGE}"
        )
    if config.translate.language not in ("auto", DECODER_LANGUAGE, source):
        raise SettingsError(
            f"translate.language is {config.translate.language!r}, but translate.model, "
            f"{translator.name}, reads {source!r}; expected auto, {DECODER_LANGUAGE} or {source}, "
            f"or another model, such as opus-mt-{config.translate.language}-{DECODER_LANGUAGE}"
        )


def check_run(config: RunConfig, output: bool = True) -> dict[str, str]:
    """Check all that a run needs, the cheapest first; nothing but a passing probe is written.

    Args:
        config: what is asked for.
        output: whether to see if the output can be written to.

    Returns:
        The digest of the weights of every stage that has a model.

    Raises:
        SettingsError: a device or precision that this machine does not have, a canvas that the
            decoder cannot draw, or a VQ-GAN that it was not trained with.
        WeightsError: weights that cannot be had.
        StorageError: an output that cannot be written to.
        PromptError, ConfigError: as `check_inputs`.
    """
    from rudalle_lib.devices import resolve_devices, resolve_dtype  # imports torch

    check_inputs(config)
    elsewhere = config.runtime.runner == "ray" and config.runtime.ray_address is not None
    for device in [] if elsewhere else resolve_devices(config.runtime.devices):
        for section in (config.runtime, config.decode, config.score, config.upscale):
            resolve_dtype(section.dtype, device)
    if output:
        Storage(config.output).check_writable()
    digests = weight_digests(config)
    check_fit(config)
    return digests


def check_fit(config: RunConfig) -> None:
    """Check that canvas, decoder and VQ-GANs fit each other; reads descriptions, no tensors.

    Raises:
        SettingsError: they do not.
        WeightsError: files that cannot be had or describe no such network.
    """
    from rudalle_lib.canvas import Canvas, choose_canvas  # import torch
    from rudalle_lib.models.dalle import DalleConfig
    from rudalle_lib.models.vqgan import VqGanConfig
    from rudalle_lib.weights import network_config

    entry = registry.get(config.generate.model, "decoder")
    decoder = network_config(entry, resolve_files(entry, config.weights), DalleConfig)
    try:
        choose_canvas(
            config.generate, Overrides(), Canvas(decoder.image_height, decoder.image_width)
        )
    except SettingsError as error:
        raise SettingsError(f"generate.{error}") from None
    encoder = config.generate.image_encoder or config.decode.model
    for key, name in (("decode.model", config.decode.model), ("generate.image_encoder", encoder)):
        vqgan = registry.get(name, "vqgan")
        codes = network_config(vqgan, resolve_files(vqgan, config.weights), VqGanConfig).n_embed
        if codes != decoder.image_vocab_size:
            raise SettingsError(
                f"{key}, {name}, does not belong to generate.model, {entry.name}: expected "
                f"{decoder.image_vocab_size:,} codes, found {codes:,}; choose the VQ-GAN that the "
                "decoder was trained with"
            )
