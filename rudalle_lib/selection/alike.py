"""Rules about near-duplicates: which images are too much like an earlier one.

Prompts come in the order of the plan, and the images of a prompt best first. So the first of some
alike images stays, also when a dataset grows. Images of earlier datasets come before all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.selection import Rule
from rudalle_lib.dataset.manifests import read_run_manifest, read_shard_manifests
from rudalle_lib.errors import ConfigError
from rudalle_lib.images.duplicates import Batch, Limits, Near, find_duplicates
from rudalle_lib.images.likeness import unpack_embedding, unpack_vectors
from rudalle_lib.schema.decisions import Alike
from rudalle_lib.schema.scores import ScoreRecord
from rudalle_lib.storage.storage import Storage

READ = 2048
"""Images whose embeddings are unpacked at a time."""


def likeness_columns(rows: Sequence[ScoreRecord], rules: Sequence[Rule]) -> dict[str, pa.Array]:
    """The columns of `selection.rules.candidates` that rules about near-duplicates need."""
    columns: dict[str, pa.Array] = {}
    if any(rule.min_distance is not None for rule in rules):
        columns["embedding"] = pa.array([row.embedding for row in rows], pa.large_binary())
    if any(rule.min_hash_distance is not None for rule in rules):
        columns["phash"] = pa.array([row.phash for row in rows], pa.string())
    return columns


def find_alike(
    rule: Rule, images: pa.Table, rows: NDArray[np.int64], codes: NDArray[np.int64]
) -> dict[int, Alike]:
    """The images that are too much like an earlier one of their group.

    Args:
        rule: has `min_distance` or `min_hash_distance`.
        images: as `selection.rules.candidates` returns it.
        rows: of `images` that the rule compares, the best first.
        codes: the number of the group of each.

    Returns:
        By row of `images`, the nearest earlier image.
    """
    column = "embedding" if rule.min_distance is not None else "phash"
    usable = pc.is_valid(images.column(column)).to_numpy(zero_copy_only=False)[rows]
    rows, codes = rows[usable], codes[usable]
    order = _plan_order(images, rows)
    rows, codes = rows[order], codes[order]
    found: dict[int, Alike] = {}
    by_group = np.argsort(codes, kind="stable")
    for own in np.split(by_group, np.flatnonzero(np.diff(codes[by_group])) + 1):
        if len(own):
            found |= _find_in_group(rule, images, rows[own])
    return found


def _find_in_group(rule: Rule, images: pa.Table, rows: NDArray[np.int64]) -> dict[int, Alike]:
    names: list[str] = []

    def batches() -> Iterator[Batch]:
        for url in rule.against:
            for ids, batch in read_published(url, rule):
                names.extend(f"{one} in {Storage(url).public_path()}" for one in ids)
                yield batch
        for start in range(0, len(rows), READ):
            part = pa.array(rows[start : start + READ])
            names.extend(images.column("image_id").take(part).to_pylist())
            if rule.min_distance is not None:
                yield Batch(embeddings=_vectors(images.column("embedding").take(part)))
            else:
                yield Batch(hashes=_hashes(images.column("phash").take(part)))

    nearest: list[Near | None] = list(
        find_duplicates(batches(), Limits(rule.min_distance, rule.min_hash_distance))
    )
    earlier = len(names) - len(rows)
    return {
        int(row): Alike(names[near.first], near.distance, near.bits)
        for row, near in zip(rows, islice(nearest, earlier, None), strict=True)
        if near is not None
    }


def _plan_order(images: pa.Table, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of rows by prompt, as prompts come in `images`, and then as rows come."""
    encoded = images.column("prompt_id").combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    prompts = np.asarray(encoded.indices)[rows]  # codes count up in the order of their first row
    return np.argsort(prompts, kind="stable")


def _vectors(column: pa.ChunkedArray) -> NDArray[np.float16]:
    return np.stack([unpack_embedding(one) for one in column.to_pylist()])


def _hashes(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    return np.array([int(one, 16) for one in column.to_pylist()], np.uint64)


# --- earlier datasets ----------------------------------------------------------------------------


def read_published(url: str, rule: Rule) -> Iterator[tuple[list[str], Batch]]:
    """The published images of an earlier dataset, shard by shard: ids, embeddings or hashes."""
    storage = Storage(url)
    column = "embedding" if rule.min_distance is not None else "phash"
    for manifest in read_shard_manifests(storage):
        table = storage.read_table(manifest.metadata.path, ["image_id", column])
        table = table.filter(pc.is_valid(table.column(column)))
        ids, values = table.column("image_id").to_pylist(), table.column(column)
        if not ids:
            continue
        if rule.min_distance is not None:
            yield ids, Batch(embeddings=unpack_vectors(values))
        else:
            yield ids, Batch(hashes=_hashes(values))


def check_earlier(config: RunConfig) -> None:
    """Check that earlier datasets have what rules compare with, made by the same scorer.

    Raises:
        ConfigError: one has not, or is the output itself; says which and what to do.
        StorageError: one cannot be read.
    """
    for number, rule in enumerate(config.select.rules):
        key = "embeddings" if rule.min_distance is not None else "hashes"
        for url in rule.against:
            storage, where = Storage(url), f"select.rules.{number}.against"
            if storage.url() == Storage(config.output).url():
                raise ConfigError(f"{where} is the output itself; its images are compared anyway")
            run = read_run_manifest(storage)
            if run is None:
                raise ConfigError(f"{where}: {storage.public_path()} holds no finished run")
            score: Mapping[str, object] = run.config.get("score", {})
            published = run.config.get("publish", {}).get("embeddings", True)
            if not score.get(key) or (key == "embeddings" and not published):
                raise ConfigError(
                    f"{where}: the images in {storage.public_path()} have no {key}; set "
                    f"score.{key}: true there and run it again, which draws nothing"
                )
            if key == "embeddings" and score.get("model") != config.score.model:
                raise ConfigError(
                    f"{where}: the embeddings in {storage.public_path()} are of "
                    f"{score.get('model')}, those of this run of {config.score.model}"
                )
