"""Tidying: stage artifacts that a finished shard no longer needs are deleted.

A finished shard is resumed by its manifest alone, so its artifacts only save work when settings
change. Deleted are files that the manifest names, of shards that no run is changing. Whatever is
missing afterwards is made again when it is needed; `pipeline.diff` says what that costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from rudalle_lib.config.selection import PROMPT
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.lease import hold
from rudalle_lib.dataset.leftovers import stages_of
from rudalle_lib.dataset.manifests import no_run_error, read_run_manifest, read_shard_manifests
from rudalle_lib.errors import ConfigError
from rudalle_lib.humanize import did_you_mean
from rudalle_lib.pipeline.stages import STAGES, Stage
from rudalle_lib.storage.storage import Storage

LEVELS: Mapping[str, Callable[[Stage], bool]] = {
    "decoded": lambda stage: stage.per != "kept image",
    "tokens": lambda stage: stage.per != "kept image" and not stage.makes_images,
    "nothing": lambda stage: False,
}
"""What can be kept, and which stages' artifacts that means. `decoded` drops enlarged and cut-out
images, `tokens` decoded ones, too."""

READERS = 16
"""Files whose sizes are asked for concurrently."""


@dataclass(frozen=True)
class StageFiles:
    """The artifacts of one stage: their number and bytes, and those of them that are dropped."""

    files: int = 0
    bytes: int = 0
    dropped: int = 0
    dropped_bytes: int = 0


@dataclass(frozen=True)
class Tidied:
    """What was dropped from an output, or would be.

    Attributes:
        stages: files by stage, in the order of the stages; only stages that have any.
        shards: number of shards from which something was dropped.
        images: number of candidate images in them.
        left_alone: shards that are not finished, or that a run with other settings has begun.
    """

    stages: Mapping[str, StageFiles]
    shards: int
    images: int
    left_alone: tuple[int, ...]

    @property
    def before(self) -> int:
        """Bytes of all artifacts before."""
        return sum(files.bytes for files in self.stages.values())

    @property
    def after(self) -> int:
        """Bytes of all artifacts afterwards."""
        return self.before - sum(files.dropped_bytes for files in self.stages.values())


def check_level(keep: str) -> None:
    """Check the name of what is kept.

    Raises:
        ConfigError: there is no such level.
    """
    if keep not in LEVELS:
        raise ConfigError(
            f"Cannot keep {keep!r}{did_you_mean(keep, LEVELS)}: expected {', '.join(LEVELS)}."
        )


def tidy(storage: Storage, keep: str, lease_seconds: float, dry_run: bool = False) -> Tidied:
    """Delete the artifacts of finished shards, except those to keep.

    Args:
        storage: the output.
        keep: a key of `LEVELS`.
        lease_seconds: duration of the lease that is held meanwhile.
        dry_run: delete nothing, and only say what would be deleted.

    Raises:
        ConfigError: an unknown level, or one without the scores that rules across shards need.
        LeaseError: a run is writing to the output.
        StorageError: there is no run, or a file cannot be deleted.
        ShardError: a damaged manifest.
    """
    check_level(keep)
    if not LEVELS[keep](STAGES["score"]):
        _check_rules(storage)
    plans = (layout.index_of(path, "plan") for path in storage.list(layout.PLAN_FOLDER))
    if all(index is None for index in plans):
        raise no_run_error(storage)
    read_run_manifest(storage)  # a damaged one is an error before anything is deleted
    with nullcontext() if dry_run else hold(storage, lease_seconds):
        artifacts = list(_artifacts(storage))
        manifests = {one.index: one for one in read_shard_manifests(storage)}
        named = {path for one in manifests.values() for path in stages_of(storage, one)}
        left_alone = {one.shard for one in artifacts if one.path not in named}
        dropped = [
            one
            for one in artifacts
            if one.shard not in left_alone and not LEVELS[keep](STAGES[one.stage])
        ]
        sizes = _sizes(storage, artifacts)
        if not dry_run:
            _delete(storage, dropped)
    shards = {one.shard for one in dropped}
    return Tidied(
        stages=_by_stage(sizes, dropped),
        shards=len(shards),
        images=sum(manifests[shard].images for shard in shards),
        left_alone=tuple(sorted(left_alone)),
    )


def _check_rules(storage: Storage) -> None:
    """Check that no rule of the last run compares scores of several shards."""
    run = read_run_manifest(storage)
    rules = [] if run is None else run.config.get("select", {}).get("rules", [])
    if any(rule.get("per", PROMPT) != PROMPT for rule in rules):
        raise ConfigError(
            "The rules in select.rules compare images of all shards, and every run reads their "
            "scores: keep tokens, or remove the rules that are not per prompt and run again."
        )


class _Artifact(NamedTuple):
    path: str
    stage: str
    shard: int


def _artifacts(storage: Storage) -> Iterator[_Artifact]:
    """The files in `stages/` whose names are ours."""
    for path in storage.list(layout.STAGES_FOLDER):
        name, stage = layout.parse(path), path.split("/")[1]
        if name is not None and name.number is not None and stage in STAGES:
            yield _Artifact(path, stage, name.number)


def _sizes(storage: Storage, artifacts: Sequence[_Artifact]) -> dict[_Artifact, int]:
    with ThreadPoolExecutor(READERS) as pool:
        sizes = pool.map(storage.size, (one.path for one in artifacts))
        return dict(zip(artifacts, sizes, strict=True))


def _delete(storage: Storage, dropped: Iterable[_Artifact]) -> None:
    folders = set()
    for one in dropped:
        storage.delete(one.path)
        folders.add(one.path.rpartition("/")[0])
    for folder in folders:
        storage.prune(folder)


def _by_stage(
    sizes: Mapping[_Artifact, int], dropped: Iterable[_Artifact]
) -> dict[str, StageFiles]:
    gone, found = set(dropped), defaultdict[str, list[_Artifact]](list)
    for one in sizes:
        found[one.stage].append(one)
    return {
        stage: StageFiles(
            files=len(found[stage]),
            bytes=sum(sizes[one] for one in found[stage]),
            dropped=sum(one in gone for one in found[stage]),
            dropped_bytes=sum(sizes[one] for one in found[stage] if one in gone),
        )
        for stage in STAGES
        if stage in found
    }
