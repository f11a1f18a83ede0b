"""Captions and pictures weighed once more, on a sample: does a score belong to what it stands by?

Scores are made of pictures as drawn, so what was drawn is scored again where it is still there, and
must come to the same; and the published file must be what the stages made of that very image. Where
a stage's artifact is gone, the published picture is scored, which enlarging changes a little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from rudalle_lib import layout, registry
from rudalle_lib.config import RunConfig
from rudalle_lib.config_publish import PublishConfig
from rudalle_lib.devices import resolve_devices, resolve_dtype
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import StorageError
from rudalle_lib.faults import Audit, Row
from rudalle_lib.images import decode_image, encode_image
from rudalle_lib.published import PublishedPictures
from rudalle_lib.record_tables import from_table
from rudalle_lib.records import PictureRecord, ShardManifest
from rudalle_lib.scoring import Scorer
from rudalle_lib.storage import Storage
from rudalle_lib.weights import load_scorer

#: Batches, threads and machines change a cosine by less.
SAME = 1e-3

#: Super-resolution and lossy formats change it by less.
CLOSE = 0.1


def rescore_sample(storage: Storage, audit: Audit, size: int) -> None:
    """Score a sample of the published pictures again, the same at every call; notes go to `audit`.

    Args:
        storage: the output.
        audit: what `audit_output` gave; images of damaged files should not be sampled, so shards
            with faults are left out.
        size: images of the sample at most.

    Raises:
        WeightsError, ConfigError: the scorer cannot be had.
    """
    if audit.config is None:
        audit.notes.append("nothing was scored again: it takes a whole run.json")
        return
    faulty = {fault.shard for fault in audit.faults}
    usable = [
        manifest
        for manifest in audit.manifests
        if manifest.index in audit.as_recorded and manifest.index not in faulty
    ]
    sample = choose_sample(storage, usable, size)
    scorer = _load(audit.config) if sample else None
    for manifest, rows in sample:
        if scorer is not None:
            _rescore_shard(storage, audit, audit.config, scorer, manifest, rows)


def choose_sample(
    storage: Storage, manifests: Sequence[ShardManifest], size: int
) -> list[tuple[ShardManifest, list[Row]]]:
    """Rows of the metadata to look at, by shard: those whose ids have the smallest digests.

    Where there are many shards, only as many of them are read as there are rows to choose.
    """
    by_digest = sorted(manifests, key=lambda manifest: digest_of(manifest.index))
    found: list[tuple[ShardManifest, Row]] = []
    for manifest in by_digest[:size]:
        rows = storage.read_table(manifest.metadata.path).to_pylist()
        found += [(manifest, row) for row in rows]
    found = sorted(found, key=lambda item: digest_of(item[1]["image_id"]))[:size]
    chosen = {manifest.index: manifest for manifest, _ in found}
    return [
        (manifest, [row for other, row in found if other.index == index])
        for index, manifest in sorted(chosen.items())
    ]


def _load(config: RunConfig) -> Scorer:
    entry = registry.get(config.score.model, "scorer")
    section, device = config.score, resolve_devices("auto")[0]
    dtype = resolve_dtype(section.dtype, device)
    loaded = load_scorer(entry.name, config.weights, device, dtype)
    return Scorer(loaded.model, loaded.tokenizer, section.templates, section.batch_size)


def _rescore_shard(
    storage: Storage,
    audit: Audit,
    config: RunConfig,
    scorer: Scorer,
    manifest: ShardManifest,
    rows: Sequence[Row],
) -> None:
    drawn = _pictures(storage, manifest, "decode")
    last = next(stage for stage in ("cutout", "upscale", "decode") if stage in manifest.stages)
    final = _pictures(storage, manifest, last)
    path, published = manifest.metadata.path, PublishedPictures(storage)
    for row in rows:
        audit.checked["pairs"] += 1
        name, own = row["image_id"], drawn.get(row["image_id"])
        picture = published.read(row["path"], name) if own is None else own
        cosine = float(scorer.score(decode_image(picture)[None], [row["text_ru"]])[0])
        allowed = CLOSE if own is None else SAME
        if not abs(cosine - row["score"]) <= allowed:
            detail = f"{name} has score {row['score']:.4f}, and {cosine:.4f} when scored again"
            audit.add("score", path, detail, manifest.index)
        made = final.get(name)
        if made is not None and _digest(made, config.publish) != row["sha256"]:
            detail = f"it is not the picture that was made for {name}"
            audit.add("label", row["path"], detail, manifest.index)


def _digest(png: bytes, section: PublishConfig) -> str:
    """SHA-256 of a picture of the stages in the published format."""
    if section.image_format != "png":
        png = encode_image(
            decode_image(png, keep_alpha=True), section.image_format, section.quality
        )
    return hashlib.sha256(png).hexdigest()


def _pictures(storage: Storage, manifest: ShardManifest, stage: str) -> dict[str, bytes]:
    """What a stage made, by image; empty where it is gone, or was made with other settings."""
    path = layout.stage_path(stage, manifest.index)
    try:
        told = storage.read_metadata(path) or {}
        if told.get("fingerprint") != manifest.stages[stage].fingerprint:
            return {}
        rows = from_table(storage.read_table(path), PictureRecord)
    except StorageError:
        return {}
    return {row.image_id: row.picture for row in rows if row.picture is not None}
