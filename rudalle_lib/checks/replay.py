"""Replay: one image of an output made again, from `run.json` and the plan alone.

The same seed, prompt, settings and weights give the same tokens, whatever else was in the batch. A
replayed image is drawn alone. On a GPU the batch is filled up to the rows that the run recorded. If
another device drew it, the last bit of a float may differ, and with it, rarely, a pixel. The result
is compared with the original and the difference is reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import read_shard_manifest, require_run_manifest
from rudalle_lib.dataset.reader import PublishedImages
from rudalle_lib.errors import ConfigError, RudalleError, StorageError
from rudalle_lib.generation.image_counts import most_images_of
from rudalle_lib.images.codecs import compress_fully, decode_image
from rudalle_lib.images.provenance import find_packet
from rudalle_lib.pipeline.artifacts import find_artifact, read_artifact
from rudalle_lib.pipeline.in_memory import InMemoryPipeline
from rudalle_lib.pipeline.publish import encode_published
from rudalle_lib.pipeline.recorded_run import (
    naming_option,
    recorded_config,
    recorded_weights,
    restricted,
)
from rudalle_lib.pipeline.stages import fingerprints, weight_digests
from rudalle_lib.prompts.plan import read_plan, read_shard
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import (
    PixelsRecord,
    Prompt,
    RunManifest,
    ShardManifest,
    ShardSpec,
    StageArtifact,
    TokensRecord,
)
from rudalle_lib.storage.storage import Storage

Row = TypeVar("Row", TokensRecord, PixelsRecord)

DRAWN = ("generate", "decode")
"""Stages whose artifacts hold what was drawn."""


@dataclass(frozen=True)
class Original:
    """What an output holds of an image; None for what it does not hold.

    Attributes:
        tokens: image tokens, row by row.
        drawn: PNG file, as decoded.
        published: file, in the published format.
    """

    tokens: list[int] | None
    drawn: bytes | None
    published: bytes | None


@dataclass(frozen=True)
class Replay:
    """An image that was made again.

    Attributes:
        content: the file, in the format of the run.
        suffix: of the file's name, without a dot.
        identical: whether it is bit for bit what the output holds; None if the output holds nothing
            to compare with.
        published: whether it was compared with the published file, or else with the decoded image.
        differences: in sentences: how it differs, and which weights have changed since.
    """

    content: bytes
    suffix: str
    identical: bool | None
    published: bool
    differences: list[str] = field(default_factory=list)


def replay(
    storage: Storage,
    image_id: str,
    fetch_weights: bool = False,
    private_hosts: bool = False,
) -> Replay:
    """Make an image again, and compare it with the output.

    Args:
        storage: the output.
        image_id: the image.
        fetch_weights: download weights that are not on this machine, from where `run.json` says.
        private_hosts: let `run.json` allow image prompts from private networks.

    Raises:
        ConfigError: the plan has no such image.
        StorageError, ShardError: the output holds no finished run, or is damaged.
        WeightsError, SettingsError: models or devices that are not available here.
        RudalleError: the image was never drawn and cannot be; the sentence says why.
    """
    run = require_run_manifest(storage)
    config = restricted(recorded_config(storage, run), fetch_weights, private_hosts)
    with naming_option(fetch_weights):
        return _replay(storage, run, config, image_id)


def _replay(storage: Storage, run: RunManifest, config: RunConfig, image_id: str) -> Replay:
    shard, prompt, replica = find_image(storage, image_id)
    before, now = recorded_weights(run, config), weight_digests(config)
    differences = [
        f"other weights for {stage} than the run had"
        for stage in now
        if before.get(stage) != now[stage]
    ]
    pipeline = InMemoryPipeline(config)
    tokens = draw(pipeline, prompt, replica, recorded_batch_rows(storage, run, shard))
    original = find_original(storage, config, shard, image_id)
    published = original.published is not None
    made = finish(pipeline, tokens, image_id, published)
    expected = original.published if published else original.drawn
    xmp = find_packet(original.published or b"")
    content = encode_published(made, config.publish, xmp) if published else compress_fully(made)
    if expected != content:
        differences += compare_tokens(original.tokens, tokens.tokens)
        differences += compare_pixels(expected, decode_image(made, keep_alpha=True))
    return Replay(
        content=content,
        suffix=layout.image_suffix(config.publish.image_format) if published else "png",
        identical=None if expected is None else expected == content,
        published=published,
        differences=differences,
    )


# --- finding it --------------------------------------------------------------------------------


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


def find_original(storage: Storage, config: RunConfig, shard: ShardSpec, image_id: str) -> Original:
    """What the output holds of an image.

    Args:
        storage: the output.
        config: of the run; finds the artifacts of a shard that has no manifest.
        shard: of the image.
        image_id: of the image.
    """
    manifest = read_shard_manifest(storage, shard.index)
    if manifest is None:
        expected = fingerprints(config, weight_digests(config), shard)
        found = {name: find_artifact(storage, name, shard, expected[name]) for name in DRAWN}
    else:
        found = {name: manifest.stages.get(name) for name in DRAWN}
    tokens = _row(storage, found["generate"], TokensRecord, image_id)
    image = _row(storage, found["decode"], PixelsRecord, image_id)
    return Original(
        tokens=None if tokens is None else tokens.tokens,
        drawn=None if image is None or image.image is None else compress_fully(image.image),
        published=None if manifest is None else _published(storage, manifest, image_id),
    )


def _row(
    storage: Storage, artifact: StageArtifact | None, record: type[Row], image_id: str
) -> Row | None:
    if artifact is None:
        return None
    try:
        rows = from_table(read_artifact(storage, artifact), record)
    except StorageError:  # missing or damaged: nothing to compare with
        return None
    return next((row for row in rows if row.image_id == image_id), None)


def _published(storage: Storage, manifest: ShardManifest, image_id: str) -> bytes | None:
    rows = storage.read_table(manifest.metadata.path, ["image_id", "path"]).to_pylist()
    paths = {row["image_id"]: row["path"] for row in rows}
    if image_id not in paths:
        return None
    return PublishedImages(storage).read(paths[image_id], image_id)


# --- making it ---------------------------------------------------------------------------------


def recorded_batch_rows(storage: Storage, run: RunManifest, shard: ShardSpec) -> int:
    """The rows of the decoder when a shard was drawn, else in most of the run; 0 if unknown."""
    manifest = read_shard_manifest(storage, shard.index)
    drawn = None if manifest is None else manifest.stages.get("generate")
    return (drawn and drawn.batch_rows) or run.batch_rows


def draw(
    pipeline: InMemoryPipeline, prompt: Prompt, replica: int, batch_rows: int = 0
) -> TokensRecord:
    """The tokens of one image, drawn with so many rows of the decoder. Raises like `replay`."""
    _check_replica(pipeline.config, prompt, replica)
    (translation,), rejects = pipeline.translate([prompt])
    if translation.text_ru is None:
        raise RudalleError(
            f"The prompt {prompt} has no translation "
            f"({rejects[prompt.prompt_id].detail}); its text is {prompt.text!r}."
        )
    texts = {prompt.prompt_id: translation.text_ru}
    replicas = range(replica, replica + 1)
    rows, rejects = pipeline.draw([prompt], texts, replicas, batch_rows)
    if prompt.prompt_id in rejects:
        reason, detail = rejects[prompt.prompt_id]
        raise RudalleError(f"{prompt} cannot be drawn ({reason}): {detail}")
    return rows[0]


def _check_replica(config: RunConfig, prompt: Prompt, replica: int) -> None:
    images = most_images_of(prompt, config.generate)
    if replica >= images:
        raise ConfigError(
            f"The prompt {prompt} has {images} images, numbered from 0; there is no "
            f"number {replica}."
        )


def finish(
    pipeline: InMemoryPipeline, tokens: TokensRecord, image_id: str, published: bool
) -> bytes:
    """The image as a PNG file: as decoded, or enlarged and cut out as it is published.

    Raises:
        RudalleError: the VQ-GAN returned NaN or infinite pixels.
    """
    rows = pipeline.decode([tokens])
    if rows[0].image is None:
        raise RudalleError(f"{image_id} cannot be decoded: NaN or infinite pixels.")
    final = pipeline.cut_out(pipeline.upscale(rows)) if published else rows
    return final[0].image or b""


# --- comparing ---------------------------------------------------------------------------------


def compare_tokens(before: Iterable[int] | None, now: Iterable[int]) -> list[str]:
    """How many tokens differ, in a sentence; empty if the old ones are missing."""
    if before is None:
        return []
    old, new = torch.tensor(list(before)), torch.tensor(list(now))
    if old.numel() != new.numel():
        return [f"{old.numel():,} image tokens then, {new.numel():,} now"]
    count = int((old != new).sum())
    if not count:
        return ["the image tokens are the same"]
    return [f"{count:,} of {new.numel():,} image tokens differ"]


def compare_pixels(before: bytes | None, now: Tensor) -> list[str]:
    """How much of the image differs, in a sentence; empty if the old one is missing.

    Args:
        before: the file of the old image.
        now: uint8 [3 or 4, H, W].
    """
    if before is None:
        return []
    old = decode_image(before, keep_alpha=True)
    if old.shape != now.shape:
        return [f"{_size(old)} pixels then, {_size(now)} now"]
    apart = (old.int() - now.int()).abs()
    return [
        f"{int((apart > 0).sum()):,} of {apart.numel():,} pixel values differ, by at most "
        f"{int(apart.max())} of 255"
    ]


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"
