"""Fingerprints and manifests: what is done, and with what.

A shard exists only if its manifest does, so the manifest is written last. `run.json` says what the
run was asked to do; everything in it but the clock can be made again from the shard manifests.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from rudalle_lib import layout, seals
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import ShardError, StorageError
from rudalle_lib.records import (
    DataFile,
    RunManifest,
    RunTotals,
    ShardManifest,
    StageArtifact,
)
from rudalle_lib.run_figures import RunUsage, ScoreSummary
from rudalle_lib.storage import Storage

#: Packages whose versions a run records.
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

#: Manifests read at once; object stores answer each in some ten milliseconds.
READERS = 16


def fingerprint(
    stage: str,
    version: int,
    settings: Mapping[str, Any],
    upstream: str | Iterable[str],
    weights: str | None = None,
) -> str:
    """32 hex characters that change whenever what the stage makes would change.

    `version` is raised by hand when the stage's code comes to make something else. `settings` is
    the stage's config section (`section.identity()`) and whatever else the stage is given that its
    result depends on, such as the run's seed or the dtype. `weights` is the digest of its weights,
    `upstream` the fingerprint of what it reads, or several in order.
    """
    above = [upstream] if isinstance(upstream, str) else list(upstream)
    return digest_of(
        {
            "stage": stage,
            "version": version,
            "settings": dict(settings),
            "weights": weights,
            "upstream": above,
        }
    )


def is_done(storage: Storage, path: str, expected_fingerprint: str) -> bool:
    """Whether a whole Parquet artifact of exactly this fingerprint is there."""
    metadata = storage.read_metadata(path)
    return metadata is not None and metadata.get("fingerprint") == expected_fingerprint


# --- shards ------------------------------------------------------------------------------------


def write_shard_manifest(storage: Storage, manifest: ShardManifest) -> None:
    """Commit a shard: call it when everything that the manifest names has been written."""
    stages = {
        name: replace(artifact, uri=storage.relative(artifact.uri))
        for name, artifact in manifest.stages.items()
    }
    content = _json(asdict(replace(manifest, stages=stages)))
    storage.write_bytes(layout.shard_manifest_path(manifest.index), content)


def read_shard_manifest(storage: Storage, index: int) -> ShardManifest | None:
    """The manifest of a finished shard, None where it isn't finished.

    Raises `ShardError` where the file is there but is not a shard manifest.
    """
    path = layout.shard_manifest_path(index)
    content = storage.read_bytes_if_any(path)
    return None if content is None else _parse_shard(storage, path, content)


def read_shard_manifests(
    storage: Storage, damaged: Callable[[str], None] | None = None
) -> list[ShardManifest]:
    """The manifests of all finished shards, by index.

    `damaged` is told of every one that is not whole, in a sentence, and its shard counts as not
    finished; without it the first of them raises `ShardError`.
    """

    def read(index: int) -> ShardManifest | None:
        try:
            return read_shard_manifest(storage, index)
        except ShardError as error:
            if damaged is None:
                raise
            damaged(str(error))
            return None

    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(read, finished_shards(storage))
        return [manifest for manifest in found if manifest is not None]


def finished_shards(storage: Storage) -> list[int]:
    """The indices of the shards that have a manifest, in order, from one listing."""
    indices = (layout.index_of(path) for path in storage.list(layout.SHARDS_FOLDER))
    return sorted(index for index in indices if index is not None)


def _parse_shard(storage: Storage, path: str, content: bytes) -> ShardManifest:
    try:
        data = _unsealed(content)
        stages = {name: StageArtifact(**item) for name, item in data.pop("stages").items()}
        metadata = DataFile(**data.pop("metadata"))
        rejects, archive = data.pop("rejects"), data.pop("archive", None)
        return ShardManifest(
            **data,
            metadata=metadata,
            rejects=DataFile(**rejects) if rejects is not None else None,
            archive=DataFile(**archive) if archive is not None else None,
            stages={
                name: replace(artifact, uri=storage.url(artifact.uri))
                for name, artifact in stages.items()
            },
        )
    except (ValueError, TypeError, KeyError, AttributeError, StorageError) as error:
        raise ShardError(_not_a_manifest(storage, path, "shard manifest", error)) from None


# --- runs --------------------------------------------------------------------------------------


def write_run_manifest(storage: Storage, manifest: RunManifest) -> None:
    """Write `run.json`."""
    storage.write_bytes(layout.RUN_MANIFEST, _json(asdict(manifest)))


def read_run_manifest(storage: Storage) -> RunManifest | None:
    """Read `run.json`, None where there is none.

    Raises `ShardError` where the file is there but is not a run manifest.
    """
    content = storage.read_bytes_if_any(layout.RUN_MANIFEST)
    if content is None:
        return None
    try:
        data = _unsealed(content)
        scores = data.get("scores")
        return RunManifest(**{
            **data,
            "totals": RunTotals(**data["totals"]),
            "usage": RunUsage(**data.get("usage", {})),
            "scores": scores and ScoreSummary(**{**scores, "bins": tuple(scores["bins"])}),
        })  # fmt: skip
    except (ValueError, TypeError, KeyError) as error:
        message = _not_a_manifest(storage, layout.RUN_MANIFEST, "run manifest", error)
        raise ShardError(message) from None


def totals(
    manifests: Iterable[ShardManifest], plan_rejects: Mapping[str, int] | None = None
) -> RunTotals:
    """Sums over finished shards, with the rows that the plan rejected (by reason)."""
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
    """The versions of Python and of the packages that decide what a run makes."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _json(data: Mapping[str, Any]) -> bytes:
    """The data as sealed JSON."""
    text = json.dumps(data, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    sealed = f'{text.removesuffix("}").rstrip()},\n  "{seals.KEY}": "{seals.UNSEALED}"\n}}\n'
    return seals.seal(sealed.encode())


def _unsealed(content: bytes) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(content)
    if not seals.is_whole(content):
        raise ValueError("expected the SHA-256 that it carries, found another")
    del data[seals.KEY]
    return data


def _not_a_manifest(storage: Storage, path: str, what: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    return (
        f"{storage.public_path(path)} is not a {what} ({reason}); delete it, and the next run "
        "makes it again."
    )
