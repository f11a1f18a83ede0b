"""Recomputes the scores of a sample, to check that captions and images belong together.

A score is computed from the image as drawn. If the drawn image still exists, its recomputed score
must be the same, and the published file must be the final image of the stages. If the drawn image
has been deleted, the published one is scored instead, with a tolerance for super-resolution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from rudalle_lib.checks.faults import Audit, Row
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.reader import PublishedImages
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import StorageError, WeightsError
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.images.provenance import find_packet
from rudalle_lib.images.scoring import Scorer
from rudalle_lib.pipeline.artifacts import read_artifact
from rudalle_lib.pipeline.publish import encode_published
from rudalle_lib.pipeline.recorded_run import naming_option, restricted
from rudalle_lib.pipeline.stages import last_image_stage
from rudalle_lib.runtime.devices import resolve_devices, resolve_dtype
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import PixelsRecord, ShardManifest
from rudalle_lib.storage.storage import Storage
from rudalle_lib.weights.loading import load_scorer

SCORE_TOLERANCE = 1e-3
"""Different batches, threads and machines change a cosine by less than this."""

PUBLISHED_TOLERANCE = 0.1
"""Super-resolution and lossy formats change a cosine by less than this."""


def rescore_sample(storage: Storage, audit: Audit, size: int, fetch_weights: bool = False) -> None:
    """Recompute the scores of a sample of published images; the sample is always the same.

    Args:
        storage: The output.
        audit: Result of `audit_output`. Faults and notes are added to it. Shards that have faults
            already are not sampled.
        size: Maximum number of images in the sample.
        fetch_weights: Download the weights of the scorer if they are not on this machine, from
            where `run.json` says. Otherwise a note says that no score was recomputed.

    Raises:
        WeightsError: The weights of the scorer are not available.
        ConfigError: The scorer is unknown.
    """
    if audit.config is None:
        audit.notes.append("no score was recomputed: this requires an intact run.json")
        return
    faulty = {fault.shard for fault in audit.faults}
    usable = [
        manifest
        for manifest in audit.manifests
        if manifest.index in audit.as_recorded and manifest.index not in faulty
    ]
    sample = choose_sample(storage, usable, size)
    if not sample:
        return
    config = restricted(audit.config, fetch_weights, private_hosts=False)
    try:
        with naming_option(fetch_weights):
            scorer = _load(config)
    except WeightsError as error:
        if fetch_weights:
            raise
        audit.notes.append(f"no score was recomputed: {error}")
        return
    for manifest, rows in sample:
        _rescore_shard(storage, audit, config, scorer, manifest, rows)


def choose_sample(
    storage: Storage, manifests: Sequence[ShardManifest], size: int
) -> list[tuple[ShardManifest, list[Row]]]:
    """Choose the rows of the metadata whose ids have the smallest digests.

    At most `size` shards are read.

    Args:
        storage: The output.
        manifests: Shards to choose from.
        size: Maximum number of rows.

    Returns:
        Manifests of the shards with their chosen rows, in the order of the shards.
    """
    by_digest = sorted(manifests, key=lambda manifest: digest_of(manifest.index))
    candidates: list[tuple[ShardManifest, Row]] = []
    for manifest in by_digest[:size]:
        rows = storage.read_table(manifest.metadata.path).to_pylist()
        candidates += [(manifest, row) for row in rows]
    chosen = sorted(candidates, key=lambda item: digest_of(item[1]["image_id"]))[:size]
    shards = {manifest.index: manifest for manifest, _ in chosen}
    return [
        (manifest, [row for other, row in chosen if other.index == index])
        for index, manifest in sorted(shards.items())
    ]


def _load(config: RunConfig) -> Scorer:
    entry = config.weights.find(config.score.model, "scorer")
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
    drawn = _images(storage, manifest, "decode")
    final = _images(storage, manifest, last_image_stage(manifest.stages))
    path, published = manifest.metadata.path, PublishedImages(storage)
    for row in rows:
        audit.checked["pairs"] += 1
        name = row["image_id"]
        image, tolerance = drawn.get(name), SCORE_TOLERANCE
        if image is None:
            image, tolerance = published.read(row["path"], name), PUBLISHED_TOLERANCE
        score = float(scorer.score(decode_image(image)[None], [row["text_ru"]])[0])
        if not abs(score - row["score"]) <= tolerance:
            detail = f"{name} has score {row['score']:.4f}, found {score:.4f}"
            audit.add("score", path, detail, manifest.index)
        if name not in final:
            continue
        xmp = find_packet(published.read(row["path"], name))
        made = encode_published(final[name], config.publish, xmp)
        if hashlib.sha256(made).hexdigest() != row["sha256"]:
            detail = f"it is not the image that the stages made for {name}"
            audit.add("label", row["path"], detail, manifest.index)


def _images(storage: Storage, manifest: ShardManifest, stage: str) -> dict[str, bytes]:
    """PNG files of a stage by image id; empty if they were deleted or made with other settings."""
    artifact = manifest.stages[stage]
    try:
        metadata = storage.read_metadata(storage.relative(artifact.uri)) or {}
        if metadata.get("fingerprint") != artifact.fingerprint:
            return {}
        rows = from_table(read_artifact(storage, artifact), PixelsRecord)
    except StorageError:
        return {}
    return {row.image_id: row.image for row in rows if row.image is not None}
