"""Replaying: one image of an output made again, from `run.json` and the plan alone.

The same seed, prompt, settings and weights give the same tokens, whatever the image was drawn in
company of. The image is drawn alone here, so where a run drew many at once the last bit of a float
may differ, and with it, rarely, a pixel: what came of it is compared, and said.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from rudalle_lib import layout, registry
from rudalle_lib.borders import Borders
from rudalle_lib.candidates import Candidate, candidates_of
from rudalle_lib.canvas import Canvas, generate_canvases
from rudalle_lib.config import RunConfig
from rudalle_lib.cutout import cut_out
from rudalle_lib.devices import resolve_devices, resolve_dtype
from rudalle_lib.errors import ConfigError, RudalleError, StorageError
from rudalle_lib.image_prompts import encode_image_prompt, read_picture
from rudalle_lib.images import decode_image, encode_image, to_uint8
from rudalle_lib.manifest import read_shard_manifest
from rudalle_lib.planning import read_plan, read_shard
from rudalle_lib.preparation import prepare
from rudalle_lib.published import PublishedPictures
from rudalle_lib.record_tables import from_table
from rudalle_lib.recorded import read_recorded_run, recorded_config, recorded_weights
from rudalle_lib.records import PictureRecord, Prompt, ShardSpec, TokensRecord
from rudalle_lib.stages import weight_digests
from rudalle_lib.storage import Storage
from rudalle_lib.translation import Translation, in_russian, language_of
from rudalle_lib.upscaling import upscale
from rudalle_lib.weights import (
    load_decoder,
    load_segmenter,
    load_translator,
    load_upscaler,
    load_vqgan,
)

Row = TypeVar("Row", TokensRecord, PictureRecord)


@dataclass(frozen=True)
class Original:
    """What an output holds of an image; None where it does not."""

    tokens: list[int] | None
    drawn: bytes | None  # PNG, as decoded
    published: bytes | None


@dataclass(frozen=True)
class Replay:
    """An image that was made again.

    Attributes:
        content: the file, in the format of the run.
        identical: bit for bit what the output holds; None where it holds nothing to compare with.
        differences: how it differs, in sentences; and what is not as it was when it was made.
        published: whether it was compared with the published file, or else with the drawn picture.
    """

    content: bytes
    suffix: str
    identical: bool | None
    published: bool
    differences: list[str] = field(default_factory=list)


def replay(storage: Storage, image_id: str) -> Replay:
    """Make an image again, and compare it with what lies in the output.

    Raises:
        ConfigError: there is no such image in the plan.
        StorageError, ShardError: the output holds no finished run, or is damaged.
        WeightsError, SettingsError: models or devices that cannot be had here.
        RudalleError: the image was never drawn, and cannot be: the sentence says why.
    """
    run = read_recorded_run(storage)
    config = recorded_config(storage, run)
    shard, prompt, replica = find_image(storage, image_id)
    before, now = recorded_weights(run, config), weight_digests(config)
    changed = [f"other weights for {stage} than the run had" for stage in now
               if before.get(stage) != now[stage]]  # fmt: skip
    tokens = draw(config, prompt, replica)
    drawn = decode(config, tokens)
    original = find_original(storage, shard, image_id)
    published = original.published is not None
    final = finish(config, drawn) if published else drawn
    section = config.publish
    content = encode_image(final, section.image_format if published else "png", section.quality)
    expected = original.published if published else original.drawn
    differences = list(changed)
    if expected != content:
        differences += compare_tokens(original.tokens, tokens) + compare_pixels(expected, final)
    suffix = {"jpeg": "jpg"}.get(section.image_format, section.image_format)
    return Replay(
        content=content,
        suffix=suffix if published else "png",
        identical=None if expected is None else expected == content,
        published=published,
        differences=differences,
    )


# --- where it is -------------------------------------------------------------------------------


def find_image(storage: Storage, image_id: str) -> tuple[ShardSpec, Prompt, int]:
    """The shard, prompt and replica of an image id.

    Raises:
        ConfigError: no prompt of the plan has it.
    """
    prompt_id, _, replica = image_id.rpartition("-")
    if prompt_id and replica.isascii() and replica.isdecimal():
        for shard in read_plan(storage):
            path = storage.relative(shard.plan_uri)
            if prompt_id in storage.read_table(path, ["prompt_id"]).column(0).to_pylist():
                prompts = {prompt.prompt_id: prompt for prompt in read_shard(storage, shard)}
                return shard, prompts[prompt_id], int(replica)
    raise ConfigError(
        f"There is no image {image_id!r} in {storage.public_path()}: expected the id of a planned "
        "prompt, '-' and a number, as in the column image_id of data/metadata."
    )


def find_original(storage: Storage, shard: ShardSpec, image_id: str) -> Original:
    """What the output holds of an image."""
    tokens = _row(storage, layout.stage_path("generate", shard.index), TokensRecord, image_id)
    picture = _row(storage, layout.stage_path("decode", shard.index), PictureRecord, image_id)
    return Original(
        tokens=None if tokens is None else tokens.tokens,
        drawn=None if picture is None else picture.picture,
        published=_published(storage, shard, image_id),
    )


def _row(storage: Storage, path: str, record: type[Row], image_id: str) -> Row | None:
    try:
        rows = from_table(storage.read_table(path), record)
    except StorageError:  # gone, or damaged: there is nothing to compare with
        return None
    return next((row for row in rows if row.image_id == image_id), None)


def _published(storage: Storage, shard: ShardSpec, image_id: str) -> bytes | None:
    manifest = read_shard_manifest(storage, shard.index)
    if manifest is None:
        return None
    rows = storage.read_table(manifest.metadata.path, ["image_id", "path"]).to_pylist()
    paths = {row["image_id"]: row["path"] for row in rows}
    if image_id not in paths:
        return None
    return PublishedPictures(storage).read(paths[image_id], image_id)


# --- making it ---------------------------------------------------------------------------------


def draw(config: RunConfig, prompt: Prompt, replica: int) -> Tensor:
    """The tokens of one image: int64 [rows, columns] on the CPU. Raises as `replay`."""
    section, devices = config.generate, tuple(resolve_devices(config.runtime.devices))
    devices = devices if config.runtime.split_decoder else devices[:1]
    candidate = _candidate(config, prompt, replica)
    text = _translate(config, prompt)
    dtype = resolve_dtype(config.runtime.dtype, devices[0])
    loaded = load_decoder(section.model, config.weights, devices, dtype)
    architecture = loaded.model.config
    encode = partial(_encode_picture, config, devices[0])
    texts = {prompt.prompt_id: text}
    ready = prepare([prompt], texts, section, loaded.tokenizer, architecture, encode)
    if prompt.prompt_id in ready.refused:
        reason, detail = ready.refused[prompt.prompt_id]
        raise RudalleError(f"{candidate.image_id} cannot be drawn ({reason}): {detail}")
    length = architecture.text_length
    ids = [ready.texts[prompt.prompt_id].ids, loaded.tokenizer.encode_text("", length).ids]
    text_ids, empty_text = torch.tensor(ids, dtype=torch.int64).split(1)
    requests = ready.requests([candidate])
    drawn = generate_canvases(loaded.model, text_ids, requests, 1, empty_text=empty_text[0])
    return drawn[0].tokens


def _candidate(config: RunConfig, prompt: Prompt, replica: int) -> Candidate:
    every = list(candidates_of([prompt], config.generate, config.seed))
    if replica >= len(every):
        raise ConfigError(
            f"The prompt {prompt.prompt_id} has {len(every)} images, numbered from 0; there is no "
            f"number {replica}."
        )
    return every[replica]


def _translate(config: RunConfig, prompt: Prompt) -> str:
    section = config.translate
    source, _ = registry.get(section.model, "translator").languages
    language = language_of(prompt.lang, prompt.text, section.language, source)
    translated: dict[str, Translation] = {}
    if language == source:
        device = resolve_devices(config.runtime.devices)[0]
        translator = load_translator(section.model, config.weights, device)
        translated[prompt.text] = translator.translations([prompt.text], source, 1)[0]
    answer = in_russian(prompt.text, language, source, translated)
    if answer.text is None:
        raise RudalleError(
            f"The prompt {prompt.prompt_id} cannot be translated from {language!r}: "
            f"{answer.fault}; its text is {prompt.text!r}."
        )
    return answer.text


def _encode_picture(
    config: RunConfig, device: torch.device, uri: str, borders: Borders, canvas: Canvas
) -> Tensor:
    name = config.generate.image_encoder or config.decode.model
    model = load_vqgan(name, config.weights, device).model
    crop = config.generate.crop_image_prompts
    return encode_image_prompt(model, read_picture(uri), borders, canvas.rows, canvas.columns, crop)


@torch.inference_mode()
def decode(config: RunConfig, tokens: Tensor) -> Tensor:
    """Tokens [rows, columns] to a picture uint8 [3, H, W] on the CPU."""
    device = resolve_devices(config.runtime.devices)[0]
    dtype = resolve_dtype(config.decode.dtype, device)
    model = load_vqgan(config.decode.model, config.weights, device, dtype).model
    floats = model.decode(tokens[None].to(device))
    return to_uint8(floats.nan_to_num(), -1.0, 1.0)[0].cpu()


def finish(config: RunConfig, drawn: Tensor) -> Tensor:
    """What is published of a picture uint8 [3, H, W]: enlarged and cut out, [3 or 4, H, W]."""
    final = drawn if config.upscale.model is None else enlarge(config, drawn)
    if not config.cutout.transparent:
        return final
    network = None
    if config.cutout.model is not None:
        device = resolve_devices(config.runtime.devices)[0]
        network = load_segmenter(config.cutout.model, config.weights, device).model
    (cutout,) = cut_out(final[None], network, config.cutout.min_confidence)
    return torch.cat((final, cutout.alpha[None]))


@torch.inference_mode()
def enlarge(config: RunConfig, picture: Tensor) -> Tensor:
    """uint8 [3, H, W] to uint8 [3, scale * H, scale * W], on the CPU."""
    device = resolve_devices(config.runtime.devices)[0]
    dtype = resolve_dtype(config.upscale.dtype, device)
    model = load_upscaler(config.upscale.model or "", config.weights, device, dtype).model
    return upscale(model, picture[None].to(device), 1, config.upscale.tile)[0].cpu()


# --- comparing ---------------------------------------------------------------------------------


def compare_tokens(before: Iterable[int] | None, now: Tensor) -> list[str]:
    """How many tokens differ, in a sentence; nothing where the old ones are gone."""
    if before is None:
        return []
    old = torch.tensor(list(before))
    if old.numel() != now.numel():
        return [f"{old.numel():,} image tokens then, {now.numel():,} now"]
    count = int((old != now.flatten()).sum())
    if not count:
        return ["the image tokens are the same"]
    return [f"{count:,} of {now.numel():,} image tokens differ"]


def compare_pixels(before: bytes | None, now: Tensor) -> list[str]:
    """How much of the picture differs, in a sentence; nothing where the old one is gone."""
    if before is None:
        return []
    old = decode_image(before, keep_alpha=True)
    if old.shape != now.shape:
        return [f"{_size(old)} pixels then, {_size(now)} now"]
    apart = (old.int() - now.int()).abs()
    return [
        f"{int((apart > 0).sum()):,} of {apart.numel():,} values of pixels differ, by "
        f"{int(apart.max())} of 255 at most"
    ]


def _size(picture: Tensor) -> str:
    return f"{picture.shape[2]} x {picture.shape[1]}"
