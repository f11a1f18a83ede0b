"""The audit of one shard: its plan, tables and images, and whether they agree with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from rudalle_lib.checks.faults import Audit, Row, Seen, is_as_described, read_content, read_sealed
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import read_shard_manifest
from rudalle_lib.dataset.reader import unpack
from rudalle_lib.dataset.splits import with_splits
from rudalle_lib.dataset.writer import with_extras
from rudalle_lib.digests import digest_of_bytes
from rudalle_lib.errors import ImageError, ShardError, StorageError
from rudalle_lib.generation.seeds import image_seed
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.pipeline.image_columns import is_ours
from rudalle_lib.pipeline.recorded_run import recorded_weights
from rudalle_lib.pipeline.stages import STAGES, fingerprints
from rudalle_lib.prompts.plan import IMAGE_PROMPTS, read_extras
from rudalle_lib.prompts.rows import plan_fingerprint
from rudalle_lib.schema.arrow import later_names, outdated_names, schema, with_current_names
from rudalle_lib.schema.records import (
    CutoutRecord,
    DataFile,
    ImageRecord,
    RejectRecord,
    ShardManifest,
    ShardSpec,
    image_id,
)
from rudalle_lib.schema.tables import same_values, with_plain_types
from rudalle_lib.storage.storage import Storage

RECORDED_STAGES = ("translate", "generate", "decode", "score")
"""Stages whose settings determine images and scores in the metadata."""

READERS = 8
"""Images read and decoded concurrently."""


def check_shard(storage: Storage, plan_path: str, audit: Audit, seen: Seen) -> None:
    """Check a plan file and everything that belongs to its shard.

    Args:
        storage: The output.
        plan_path: A file of the folder plan/.
        audit: Where results are added.
        seen: What the audit has come across; extended by this shard.
    """
    index = layout.index_of(plan_path, "plan")
    if index is None:
        return
    seen.files.add(plan_path)
    plan = _read_plan(storage, plan_path, audit)
    manifest = _read_manifest(storage, index, audit, seen)
    if manifest is None or plan is None:
        seen.open_shards.add(index)
        return
    audit.manifests.append(manifest)
    audit.checked["shards"] += 1
    spec = _spec(storage, plan_path, index, plan)
    _compare_with_run(manifest, spec, audit)
    _check_finished(storage, manifest, spec, plan.to_pylist(), audit, seen)


def _read_plan(storage: Storage, path: str, audit: Audit) -> pa.Table | None:
    audit.checked["plan files"] += 1
    plan = read_sealed(storage, path, audit, None)
    if plan is not None and plan.schema.metadata.get(b"fingerprint") != (
        plan_fingerprint(plan).encode()
    ):
        audit.add("damaged", path, "its rows do not match its fingerprint")
    return plan


def _read_manifest(storage: Storage, index: int, audit: Audit, seen: Seen) -> ShardManifest | None:
    term = seen.terms.get(index, 0)
    path = layout.shard_manifest_path(index, term)
    try:
        manifest = read_shard_manifest(storage, index, term)
    except ShardError as error:
        audit.add("damaged", path, str(error), index)
        return None
    if manifest is None:
        audit.add("unfinished", path, "the file does not exist", index)
    return manifest


def _spec(storage: Storage, path: str, index: int, plan: pa.Table) -> ShardSpec:
    metadata = plan.schema.metadata
    has_image_prompts = metadata.get(IMAGE_PROMPTS.encode(), b"0") != b"0"
    fingerprint = metadata.get(b"fingerprint", b"").decode()
    return ShardSpec(index, storage.url(path), plan.num_rows, fingerprint, has_image_prompts)


def _compare_with_run(manifest: ShardManifest, spec: ShardSpec, audit: Audit) -> None:
    if audit.run is None or audit.config is None:
        return
    expected = fingerprints(audit.config, recorded_weights(audit.run, audit.config), spec)
    if all(manifest.stages[stage].fingerprint == expected[stage] for stage in RECORDED_STAGES):
        audit.as_recorded.add(manifest.index)
    else:
        audit.notes.append(
            f"shard {manifest.index:05d} was made with other settings than {layout.RUN_MANIFEST} "
            "records: a run with changed settings has not finished"
        )


def _check_finished(
    storage: Storage,
    manifest: ShardManifest,
    spec: ShardSpec,
    prompts: Sequence[Row],
    audit: Audit,
    seen: Seen,
) -> None:
    index = manifest.index
    seen.files.add(layout.shard_manifest_path(index, manifest.term))
    metadata = _read_table(storage, manifest.metadata, ImageRecord, index, audit, seen)
    reject_table = _read_table(storage, manifest.rejects, RejectRecord, index, audit, seen)
    _check_stages(storage, manifest, audit, seen)
    if metadata is None or reject_table is None:
        seen.open_shards.add(index)
        return
    rows = with_current_names(metadata, ImageRecord).to_pylist()
    rejects = reject_table.to_pylist()
    _check_counts(manifest, prompts, rows, rejects, audit)
    _check_labels(manifest, prompts, rows, audit)
    texts = {prompt["prompt_id"]: prompt["text"] for prompt in prompts}
    extras = with_splits(read_extras(storage, spec), texts, manifest.splits)
    _check_extras(manifest, extras, metadata, audit)
    _check_ids(manifest, prompts, rows, rejects, audit, seen)
    _check_images(storage, manifest, rows, audit, seen)


def _read_table(
    storage: Storage, file: DataFile | None, record: type, index: int, audit: Audit, seen: Seen
) -> pa.Table | None:
    """A table that a manifest names, as stored; None, and a fault, if it is not as described."""
    if file is None:
        return schema(record).empty_table()
    seen.files.add(file.path)
    audit.checked["tables"] += 1
    content = read_content(storage, file, index, audit)
    table = None if content is None else read_sealed(storage, file.path, audit, index)
    if table is None:
        return None
    _remember_outdated(table, record, index, seen)
    found = {column.name: column.type for column in with_current_names(table, record).schema}
    lacking = later_names(record) - found.keys()
    expected = [item for item in schema(record) if item.name not in lacking]
    wrong = [item.name for item in expected if found.get(item.name) != item.type]
    if wrong:
        detail = f"columns that are missing or have another type: {', '.join(wrong)}"
        audit.add("column", file.path, detail, index)
        return None
    return table


def _remember_outdated(table: pa.Table, record: type, index: int, seen: Seen) -> None:
    outdated = outdated_names(table, record)
    if outdated:
        seen.outdated.update(outdated)
        seen.outdated_shards.add(index)


def _check_stages(storage: Storage, manifest: ShardManifest, audit: Audit, seen: Seen) -> None:
    """Artifacts may have been deleted or made with newer settings, but not damaged."""
    for stage, artifact in manifest.stages.items():
        path = storage.relative(artifact.uri)
        seen.files.add(path)
        if stage == "publish" or not storage.exists(path):
            continue
        audit.checked["artifacts"] += 1
        table = read_sealed(storage, path, audit, manifest.index)
        if table is not None and STAGES[stage].makes_images:
            # This record has the columns of all image stages.
            _remember_outdated(table, CutoutRecord, manifest.index, seen)


def _check_counts(
    manifest: ShardManifest, prompts: Sequence[Row], rows: Sequence[Row], rejects: Sequence[Row],
    audit: Audit,
) -> None:  # fmt: skip
    path = layout.shard_manifest_path(manifest.index, manifest.term)
    images = len(rows) + sum(row["image_id"] is not None for row in rejects)
    for what, recorded, found in (
        ("prompts", manifest.prompts, len(prompts)),
        ("images", manifest.images, images),
        ("published images", manifest.kept, len(rows)),
        ("bytes of images", manifest.image_bytes, sum(row["bytes"] for row in rows)),
        ("rejects", dict(manifest.rejected), dict(Counter(row["reason"] for row in rejects))),
    ):
        if recorded != found:
            audit.add("count", path, f"it records {recorded} {what}, found {found}", manifest.index)


def _check_labels(
    manifest: ShardManifest, prompts: Sequence[Row], rows: Sequence[Row], audit: Audit
) -> None:
    """Every row has the text, shard, image id and seed that belong to its prompt and replica."""
    prompts_by_id = {prompt["prompt_id"]: prompt for prompt in prompts}
    for row in rows:
        prompt = prompts_by_id.get(row["prompt_id"], {})
        expected = {
            "image_id": image_id(row["prompt_id"], row["replica"]),
            "text": prompt.get("text"),
            "shard": manifest.index,
        }
        if audit.config is not None and manifest.index in audit.as_recorded:
            seed = audit.config.seed if prompt.get("seed") is None else prompt["seed"]
            expected["seed"] = image_seed(seed, row["prompt_id"], row["replica"])
        wrong = [f"{name} {value!r}, found {row[name]!r}" for name, value in expected.items()
                 if row[name] != value]  # fmt: skip
        if wrong:
            path = f"{manifest.metadata.path} ({row['image_id']})"
            audit.add("label", path, f"expected {'; '.join(wrong)}", manifest.index)


def _check_extras(
    manifest: ShardManifest, extras: pa.Table, metadata: pa.Table, audit: Audit
) -> None:
    """The pass-through columns are those of the plan, and the split is that of the prompt.

    They are compared under the names on disk, which depend on how `ImageRecord`'s were called.
    """
    stored = {new: old for old, new in outdated_names(metadata, ImageRecord).items()}
    names = [stored.get(name, name) for name in schema(ImageRecord).names]
    names += [field.name for field in metadata.schema if is_ours(field)]
    expected = with_extras(metadata.select(names), extras)
    if not same_values(expected, with_plain_types(metadata)):
        detail = "its pass-through columns differ from those of the plan"
        audit.add("column", manifest.metadata.path, detail, manifest.index)


def _check_ids(
    manifest: ShardManifest, prompts: Sequence[Row], rows: Sequence[Row], rejects: Sequence[Row],
    audit: Audit, seen: Seen,
) -> None:  # fmt: skip
    """Every prompt has a row, and no prompt or image has two."""
    index = manifest.index
    ids = [prompt["prompt_id"] for prompt in prompts]
    audit.checked["prompts"] += len(ids)
    for prompt_id in _repeated(ids, seen.prompts):
        audit.add("duplicate", layout.plan_path(index), f"prompt {prompt_id} is planned twice")
    image_ids = [row["image_id"] for row in (*rows, *rejects) if row["image_id"] is not None]
    for repeated in _repeated(image_ids, seen.images):
        audit.add("duplicate", manifest.metadata.path, f"image {repeated} has two rows", index)
    with_rows = {row["prompt_id"] for row in (*rows, *rejects)}
    for prompt_id in sorted(set(ids) - with_rows):
        detail = f"prompt {prompt_id} has no image and no reject"
        audit.add("missing", manifest.metadata.path, detail, index)


def _repeated(ids: Sequence[str], seen: set[str]) -> Iterator[str]:
    for one in ids:
        if one in seen:
            yield one
        seen.add(one)


Reader = Callable[[Row, Audit], bytes | None]
"""Returns the image of a metadata row; None, and a fault, if it is not as the row describes."""


def _check_images(
    storage: Storage, manifest: ShardManifest, rows: Sequence[Row], audit: Audit, seen: Seen
) -> None:
    index, read = manifest.index, _reader(storage, manifest, audit, seen)
    seen.files.update(row["path"] for row in rows)

    def check(row: Row) -> tuple[Audit, str]:
        result = Audit()
        return result, _check_image(read, row, index, result)

    with ThreadPoolExecutor(READERS) as pool:
        for row, (result, shown) in zip(rows, pool.map(check, rows), strict=True):
            audit.faults += result.faults
            audit.checked += result.checked
            twin = seen.contents.setdefault(shown, row["image_id"]) if shown else row["image_id"]
            if twin != row["image_id"]:
                audit.notes.append(f"{row['image_id']} and {twin} are identical images")


def _reader(storage: Storage, manifest: ShardManifest, audit: Audit, seen: Seen) -> Reader:
    """A reader of image files, or of the archive that the manifest names."""
    index, archives = manifest.index, manifest.archives

    def from_file(row: Row, audit: Audit) -> bytes | None:
        return read_content(storage, _described(row), index, audit)

    if not archives:
        return from_file
    seen.files.update(archive.path for archive in archives)
    images = {archive.path: _unpack(storage, archive, index, audit) for archive in archives}

    def from_archive(row: Row, audit: Audit) -> bytes | None:
        archive = images.get(row["path"], {})
        if archive is None:
            return None  # the archive's fault has been added
        content = archive.get(row["image_id"])
        if content is None:
            audit.add("missing", row["path"], f"it holds no image {row['image_id']}", index)
            return None
        return content if is_as_described(content, _described(row), index, audit) else None

    return from_archive


def _unpack(
    storage: Storage, archive: DataFile, index: int, audit: Audit
) -> dict[str, bytes] | None:
    content = read_content(storage, archive, index, audit)
    if content is None:
        return None
    try:
        return unpack(content, archive.path)
    except StorageError as error:
        audit.add("damaged", archive.path, str(error), index)
        return None


def _described(row: Row) -> DataFile:
    return DataFile(row["path"], row["bytes"], row["sha256"])


def _check_image(read: Reader, row: Row, index: int, audit: Audit) -> str:
    """Check an image; returns a digest of its pixels, empty if it cannot be read."""
    audit.checked["images"] += 1
    content = read(row, audit)
    if content is None:
        return ""
    try:
        image = decode_image(content, name="the image", keep_alpha=True)
    except ImageError as error:
        audit.add("image", row["path"], str(error), index)
        return ""
    height, width = image.shape[1:]
    if (width, height) != (row["width"], row["height"]):
        detail = f"expected {row['width']} x {row['height']} pixels, found {width} x {height}"
        audit.add("image", row["path"], detail, index)
    return digest_of_bytes(f"{tuple(image.shape)}".encode() + image.numpy().tobytes())
