"""Manifests: which shards are finished, and how they were made.

A shard is finished once its manifest exists, so the manifest is written last. `run.json` describes
the run; everything in it but the times can be rebuilt from configuration and shard manifests.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.lineage import lineage_of
from rudalle_lib.errors import ShardError, StorageError
from rudalle_lib.schema.decisions import SelectionRecord
from rudalle_lib.schema.records import (
    DataFile,
    RunManifest,
    RunTotals,
    RunUsage,
    ScoreSummary,
    ShardManifest,
    StageArtifact,
)
from rudalle_lib.storage import seals
from rudalle_lib.storage.storage import Storage

RECORDED_PACKAGES = (
    "rudalle-flows",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pillow",
    "pyarrow",
    "prefect",
)
"""Packages whose versions a run records."""

READERS = 16
"""Manifests read concurrently; object stores take about ten milliseconds per request."""


# --- shards ------------------------------------------------------------------------------------


def write_shard_manifest(storage: Storage, manifest: ShardManifest) -> None:
    """Commit a shard; call this after all files that the manifest names have been written."""
    stages = {
        name: replace(artifact, uri=storage.relative(artifact.uri))
        for name, artifact in manifest.stages.items()
    }
    content = sealed_json(asdict(replace(manifest, stages=stages)))
    storage.commit(layout.shard_manifest_path(manifest.index, manifest.term), content)


def read_shard_manifest(
    storage: Storage, index: int, term: int | None = None
) -> ShardManifest | None:
    """The manifest of a shard, None if the shard is not finished.

    Args:
        storage: The output.
        index: The shard.
        term: The highest that the manifest can have, if it is known: saves listing the storage.

    Raises:
        ShardError: The file exists but is not a shard manifest.
    """
    highest = finished_shards(storage).get(index) if term is None else term
    for number in range(-1 if highest is None else highest, -1, -1):
        path = layout.shard_manifest_path(index, number)
        content = storage.read_bytes_if_any(path)
        if content is not None:
            return _parse_shard(storage, path, content)
    return None


def read_shard_manifests(
    storage: Storage,
    on_damaged: Callable[[str], None] | None = None,
    wanted: Callable[[int], bool] = lambda _: True,
) -> list[ShardManifest]:
    """The manifests of all finished shards, by index.

    Args:
        storage: The output.
        on_damaged: Called with an error message per damaged manifest, whose shard then counts as
            not finished. Without it, a damaged manifest is an error.
        wanted: Whether the manifest of a shard is read, by index.

    Raises:
        ShardError: A manifest is damaged, and there is no `on_damaged`.
    """

    def read(shard: tuple[int, int]) -> ShardManifest | None:
        try:
            return read_shard_manifest(storage, *shard)
        except ShardError as error:
            if on_damaged is None:
                raise
            on_damaged(str(error))
            return None

    shards = [shard for shard in finished_shards(storage).items() if wanted(shard[0])]
    with ThreadPoolExecutor(READERS) as pool:
        manifests = pool.map(read, shards)
        return [manifest for manifest in manifests if manifest is not None]


def finished_shards(storage: Storage) -> dict[int, int]:
    """The highest term of the manifests of each finished shard, by index, in order.

    Lists the storage once.
    """
    found: defaultdict[int, int] = defaultdict(int)
    for name in map(layout.parse, storage.list(layout.SHARDS_FOLDER)):
        if name is not None and name.kind == "manifest" and name.number is not None:
            found[name.number] = max(found[name.number], name.term)
    return dict(sorted(found.items()))


def adopt_manifests(
    storage: Storage, term: int, wanted: Callable[[int], bool] = lambda _: True
) -> None:
    """After a takeover: give the manifests of earlier terms this one.

    Whatever the earlier holder still writes, if it is alive, is not valid then.

    Args:
        storage: The output.
        term: Of the lease that is held.
        wanted: Whether the lease is for a shard, by index.
    """
    earlier = [(index, own) for index, own in finished_shards(storage).items() if own < term]
    for index, own in earlier:
        if not wanted(index):
            continue
        with suppress(ShardError):  # damaged: its shard is made again
            manifest = read_shard_manifest(storage, index, own)
            if manifest is not None:
                write_shard_manifest(storage, replace(manifest, term=term))


def delete_shard_manifests(storage: Storage, index: int, up_to: int) -> None:
    """Delete the manifests of a shard that have this term or an earlier one."""
    for term in range(up_to + 1):
        storage.delete(layout.shard_manifest_path(index, term))


def _parse_shard(storage: Storage, path: str, content: bytes) -> ShardManifest:
    try:
        data = unsealed(content)
        stages = {name: StageArtifact(**item) for name, item in data.pop("stages").items()}
        metadata = DataFile(**data.pop("metadata"))
        rejects, archives = data.pop("rejects"), data.pop("archives", [])
        if archive := data.pop("archive", None):  # as 0.1 named it
            archives = [archive]
        return ShardManifest(
            **data,
            metadata=metadata,
            rejects=DataFile(**rejects) if rejects is not None else None,
            archives=tuple(DataFile(**one) for one in archives),
            stages={
                name: replace(artifact, uri=storage.url(artifact.uri))
                for name, artifact in stages.items()
            },
        )
    except (ValueError, TypeError, KeyError, AttributeError, StorageError) as error:
        raise ShardError(_not_a_manifest(storage, path, "shard manifest", error)) from None


# --- runs --------------------------------------------------------------------------------------


def write_run_manifest(
    storage: Storage, manifest: RunManifest, replacing: str | None = None
) -> None:
    """Write `run.json`; `replacing` is the version that may be replaced, see `Storage`."""
    storage.commit(layout.RUN_MANIFEST, sealed_json(asdict(manifest)), replacing)


def read_run_manifest(storage: Storage) -> RunManifest | None:
    """The content of `run.json`, None if it does not exist.

    Raises:
        ShardError: The file exists but is not a run manifest.
    """
    content = storage.read_bytes_if_any(layout.RUN_MANIFEST)
    if content is None:
        return None
    try:
        data = unsealed(content)
        scores = data.get("scores")
        return RunManifest(**{
            **data,
            "totals": RunTotals(**data["totals"]),
            "lineage": lineage_of(data["lineage"]) if data.get("lineage") else None,
            "usage": RunUsage(**data.get("usage", {})),
            "files": {path: DataFile(**file) for path, file in data.get("files", {}).items()},
            "selection": SelectionRecord.parse(data.get("selection", {})),
            "scores": scores and ScoreSummary(**{**scores, "bins": tuple(scores["bins"])}),
        })  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = _not_a_manifest(storage, layout.RUN_MANIFEST, "run manifest", error)
        raise ShardError(message) from None


def require_run_manifest(storage: Storage) -> RunManifest:
    """The manifest of the last run that finished.

    Raises:
        StorageError: No run has finished in this output.
        ShardError: `run.json` is not a run manifest.
    """
    run = read_run_manifest(storage)
    if run is None:
        raise StorageError(
            f"There is no finished run in {storage.public_path()}: expected {layout.RUN_MANIFEST}. "
            "Give the output of `rudalle-flows run`."
        )
    return run


def no_run_error(storage: Storage) -> StorageError:
    """The error for a folder in which no run has even started."""
    return StorageError(
        f"There is no run in {storage.public_path()}: expected a folder {layout.PLAN_FOLDER}/ with "
        "Parquet files in it. Give the output of `rudalle-flows run`."
    )


def totals(
    manifests: Iterable[ShardManifest], plan_rejects: Mapping[str, int] | None = None
) -> RunTotals:
    """Sums over finished shards.

    Args:
        manifests: Of the finished shards.
        plan_rejects: Number of rows that the plan rejected, by reason.
    """
    rejected: Counter[str] = Counter(plan_rejects or {})
    seconds: defaultdict[str, float] = defaultdict(float)
    waiting: defaultdict[str, float] = defaultdict(float)
    shards = prompts = images = kept = image_bytes = 0
    for manifest in manifests:
        shards += 1
        prompts += manifest.prompts
        images += manifest.images
        kept += manifest.kept
        image_bytes += manifest.image_bytes
        rejected.update(manifest.rejected)
        for stage, artifact in manifest.stages.items():
            seconds[stage] += artifact.seconds
            waiting[stage] += artifact.waited
    sums = (shards, prompts, images, kept, dict(rejected), dict(seconds), image_bytes)
    return RunTotals(*sums, dict(waiting))


def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that influence the output of a run."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def sealed_json(data: Mapping[str, Any]) -> bytes:
    """The data as JSON that holds a SHA-256 of itself (see `seals`)."""
    text = json.dumps(data, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    sealed = f'{text.removesuffix("}").rstrip()},\n  "{seals.KEY}": "{seals.UNSEALED}"\n}}\n'
    return seals.seal(sealed.encode())


def unsealed(content: bytes) -> dict[str, Any]:
    """The data in sealed JSON.

    Raises:
        ValueError: It is no JSON, or has changed since it was sealed.
    """
    data: dict[str, Any] = json.loads(content)
    if not seals.is_intact(content):
        raise ValueError("its content does not match the SHA-256 stored in it")
    del data[seals.KEY]
    return data


def _not_a_manifest(storage: Storage, path: str, what: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    return (
        f"{storage.public_path(path)} is not a {what} ({reason}); delete it, and the next run "
        "recreates it."
    )
