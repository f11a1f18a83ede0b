"""The audit of one shard: its plan, tables, pictures, and what its rows say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from rudalle_lib import layout
from rudalle_lib.errors import ImageError, ShardError
from rudalle_lib.faults import Audit, Known, Row, is_as_described, read_content, read_sealed
from rudalle_lib.images import decode_image
from rudalle_lib.manifest import read_shard_manifest
from rudalle_lib.planning import IMAGE_PROMPTS, plan_fingerprint, read_extras
from rudalle_lib.published import unpack
from rudalle_lib.record_tables import schema
from rudalle_lib.recorded import recorded_weights
from rudalle_lib.records import (
    DataFile,
    ImageRecord,
    RejectRecord,
    ShardManifest,
    ShardSpec,
    image_id,
)
from rudalle_lib.seeds import image_seed
from rudalle_lib.shards import with_extras
from rudalle_lib.stages import STAGES, fingerprints
from rudalle_lib.storage import Storage

#: The stages that rows of the metadata tell of.
DRAWN_AND_SCORED = ("translate", "generate", "decode", "score")

#: Pictures read and decoded at once.
READERS = 8


def check_planned(storage: Storage, path: str, audit: Audit, known: Known) -> None:
    """A plan file, and all of its shard."""
    index = layout.index_of(path)
    if index is None:
        return
    known.files.add(path)
    known.files.update(layout.stage_path(stage, index) for stage in STAGES)
    audit.checked["plan files"] += 1
    plan = read_sealed(storage, path, audit, None)
    if plan is not None and plan.schema.metadata.get(b"fingerprint") != (
        plan_fingerprint(plan).encode()
    ):
        audit.add("damaged", path, "its rows are not those of its fingerprint")
    try:
        manifest = read_shard_manifest(storage, index)
    except ShardError as error:
        audit.add("damaged", layout.shard_manifest_path(index), str(error), index)
        manifest = None
    else:
        if manifest is None:
            audit.add("unfinished", layout.shard_manifest_path(index), "expected, not there", index)
    if manifest is None or plan is None:
        known.open_shards.add(index)
        return
    audit.manifests.append(manifest)
    audit.checked["shards"] += 1
    spec = _spec(storage, path, index, plan)
    _compare_with_run(manifest, spec, audit)
    _check_shard(storage, manifest, spec, plan.to_pylist(), audit, known)


def _spec(storage: Storage, path: str, index: int, plan: pa.Table) -> ShardSpec:
    told = plan.schema.metadata
    pictures = told.get(IMAGE_PROMPTS.encode(), b"0") != b"0"
    digest = told.get(b"fingerprint", b"").decode()
    return ShardSpec(index, storage.url(path), plan.num_rows, digest, pictures)


def _compare_with_run(manifest: ShardManifest, spec: ShardSpec, audit: Audit) -> None:
    if audit.run is None or audit.config is None:
        return
    expected = fingerprints(audit.config, recorded_weights(audit.run, audit.config), spec)
    if all(manifest.stages[stage].fingerprint == expected[stage] for stage in DRAWN_AND_SCORED):
        audit.as_recorded.add(manifest.index)
    else:
        audit.notes.append(
            f"shard {manifest.index:05d} was made with other settings than {layout.RUN_MANIFEST} "
            "tells: a changed run has not ended yet"
        )


def _check_shard(
    storage: Storage,
    manifest: ShardManifest,
    spec: ShardSpec,
    prompts: Sequence[Row],
    audit: Audit,
    known: Known,
) -> None:
    index = manifest.index
    known.files.add(layout.shard_manifest_path(index))
    metadata = _data_table(storage, manifest.metadata, schema(ImageRecord), index, audit, known)
    rejects = _data_table(storage, manifest.rejects, schema(RejectRecord), index, audit, known)
    _check_stages(storage, manifest, audit)
    if metadata is None or rejects is None:
        known.open_shards.add(index)
        return
    rows, refused = metadata.to_pylist(), rejects.to_pylist()
    _check_counts(manifest, prompts, rows, refused, audit)
    _check_labels(manifest, prompts, rows, audit)
    own = metadata.select(schema(ImageRecord).names)
    if not with_extras(own, read_extras(storage, spec)).equals(metadata):
        detail = "its pass-through columns are not those of the plan"
        audit.add("column", manifest.metadata.path, detail, index)
    _check_ids(manifest, prompts, rows, refused, audit, known)
    _check_pictures(storage, manifest, rows, audit, known)


def _data_table(
    storage: Storage, file: DataFile | None, columns: pa.Schema, index: int, audit: Audit,
    known: Known,
) -> pa.Table | None:  # fmt: skip
    """A table that a manifest names, if it is whole, has its digest and all columns."""
    if file is None:
        return columns.empty_table()
    known.files.add(file.path)
    audit.checked["tables"] += 1
    content = read_content(storage, file, index, audit)
    table = None if content is None else read_sealed(storage, file.path, audit, index)
    if table is None:
        return None
    wrong = [
        item.name
        for item in columns
        if item.name not in table.column_names or table.schema.field(item.name).type != item.type
    ]
    if wrong:
        audit.add("column", file.path, f"missing or of another type: {', '.join(wrong)}", index)
        return None
    return table


def _check_stages(storage: Storage, manifest: ShardManifest, audit: Audit) -> None:
    """Artifacts may be gone, or of newer settings; where they are there, they must be whole."""
    for stage in manifest.stages:
        path = layout.stage_path(stage, manifest.index)
        if stage != "publish" and storage.exists(path):
            audit.checked["artifacts"] += 1
            read_sealed(storage, path, audit, manifest.index)


def _check_counts(
    manifest: ShardManifest, prompts: Sequence[Row], rows: Sequence[Row], refused: Sequence[Row],
    audit: Audit,
) -> None:  # fmt: skip
    path = layout.shard_manifest_path(manifest.index)
    images = len(rows) + sum(row["image_id"] is not None for row in refused)
    for what, said, found in (
        ("prompts", manifest.prompts, len(prompts)),
        ("images", manifest.images, images),
        ("published images", manifest.kept, len(rows)),
        ("bytes of images", manifest.image_bytes, sum(row["bytes"] for row in rows)),
        ("rejects", dict(manifest.rejected), dict(Counter(row["reason"] for row in refused))),
    ):
        if said != found:
            audit.add("count", path, f"it says {said} {what}, found {found}", manifest.index)


def _check_labels(
    manifest: ShardManifest, prompts: Sequence[Row], rows: Sequence[Row], audit: Audit
) -> None:
    """Every row tells of the prompt, replica, seed and shard that its picture belongs to."""
    known = {prompt["prompt_id"]: prompt for prompt in prompts}
    for row in rows:
        prompt = known.get(row["prompt_id"], {})
        expected = {
            "image_id": image_id(row["prompt_id"], row["replica"]),
            "text": prompt.get("text"),
            "shard": manifest.index,
        }
        if audit.config is not None and manifest.index in audit.as_recorded:
            own = prompt.get("seed")
            seed = audit.config.seed if own is None else own
            expected["seed"] = image_seed(seed, row["prompt_id"], row["replica"])
        wrong = [f"{name} {value!r}, found {row[name]!r}" for name, value in expected.items()
                 if row[name] != value]  # fmt: skip
        if wrong:
            path = f"{manifest.metadata.path} ({row['image_id']})"
            audit.add("label", path, f"expected {'; '.join(wrong)}", manifest.index)


def _check_ids(
    manifest: ShardManifest, prompts: Sequence[Row], rows: Sequence[Row], refused: Sequence[Row],
    audit: Audit, known: Known,
) -> None:  # fmt: skip
    """Every prompt has a row, and none, nor any image, has two."""
    index = manifest.index
    ids = [prompt["prompt_id"] for prompt in prompts]
    audit.checked["prompts"] += len(ids)
    for prompt_id in _twice(ids, known.prompts):
        audit.add("duplicate", layout.plan_path(index), f"prompt {prompt_id} is planned twice")
    images = [row["image_id"] for row in (*rows, *refused) if row["image_id"] is not None]
    for twice in _twice(images, known.images):
        audit.add("duplicate", manifest.metadata.path, f"image {twice} has two rows", index)
    told = {row["prompt_id"] for row in (*rows, *refused)}
    for prompt_id in sorted(set(ids) - told):
        detail = f"prompt {prompt_id} has no image and no reject"
        audit.add("missing", manifest.metadata.path, detail, index)


def _twice(ids: Sequence[str], seen: set[str]) -> Iterator[str]:
    for one in ids:
        if one in seen:
            yield one
        seen.add(one)


Reader = Callable[[Row, Audit], bytes | None]
"""Gives the file of a row's picture if it is the one that the row describes; or tells the audit."""


def _check_pictures(
    storage: Storage, manifest: ShardManifest, rows: Sequence[Row], audit: Audit, known: Known
) -> None:
    index, read = manifest.index, _reader(storage, manifest, audit, known)
    known.files.update(row["path"] for row in rows)

    def look(row: Row) -> Audit:
        found = Audit()
        _check_picture(read, row, index, found)
        return found

    with ThreadPoolExecutor(READERS) as pool:
        for row, found in zip(rows, pool.map(look, rows), strict=True):
            audit.faults += found.faults
            audit.checked += found.checked
            twin = known.contents.setdefault(row["sha256"], row["image_id"])
            if twin != row["image_id"]:
                audit.notes.append(f"{row['image_id']} is pixel for pixel {twin}")


def _reader(storage: Storage, manifest: ShardManifest, audit: Audit, known: Known) -> Reader:
    """Reads pictures from files of their own, or from the one that the manifest names."""
    index, archive = manifest.index, manifest.archive

    def from_file(row: Row, found: Audit) -> bytes | None:
        return read_content(storage, _described(row), index, found)

    if archive is None:
        return from_file
    known.files.add(archive.path)
    packed = read_content(storage, archive, index, audit)
    pictures = None if packed is None else unpack(packed, archive.path)

    def from_archive(row: Row, found: Audit) -> bytes | None:
        if pictures is None:
            return None  # which has been told
        content = pictures.get(row["image_id"])
        if content is None:
            found.add("missing", row["path"], f"{row['image_id']} is not in it", index)
            return None
        return content if is_as_described(content, _described(row), index, found) else None

    return from_archive


def _described(row: Row) -> DataFile:
    return DataFile(row["path"], row["bytes"], row["sha256"])


def _check_picture(read: Reader, row: Row, index: int, audit: Audit) -> None:
    audit.checked["pictures"] += 1
    content = read(row, audit)
    if content is None:
        return
    try:
        height, width = decode_image(content, name="it").shape[1:]
    except ImageError as error:
        audit.add("picture", row["path"], str(error), index)
        return
    if (width, height) != (row["width"], row["height"]):
        detail = f"expected {row['width']} x {row['height']} pixels, found {width} x {height}"
        audit.add("picture", row["path"], detail, index)
