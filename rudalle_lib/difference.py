"""What a run would do: shards that are finished, that are new, and what the others need again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rudalle_lib import layout
from rudalle_lib.config import RunConfig, ScoreConfig
from rudalle_lib.errors import DamagedError, ShardError
from rudalle_lib.manifest import read_run_manifest, read_shard_manifests
from rudalle_lib.planning import plan_run
from rudalle_lib.record_tables import from_table
from rudalle_lib.records import RunManifest, ScoreRecord, ShardManifest, ShardSpec
from rudalle_lib.report import current_report
from rudalle_lib.selection import kept
from rudalle_lib.stages import STAGES, fingerprints, stages_off
from rudalle_lib.storage import Storage


@dataclass(frozen=True)
class Difference:
    """Shards by what a run would do with them.

    `unchanged` have a manifest with the fingerprint that the run would give them, `new` have none;
    `changed` have an older one, and name the stages that would make something else now.
    """

    unchanged: tuple[ShardSpec, ...]
    new: tuple[ShardSpec, ...]
    changed: tuple[tuple[ShardSpec, tuple[str, ...]], ...]

    @property
    def todo(self) -> list[ShardSpec]:
        """The shards that a run would work on, in order."""
        shards = [*self.new, *(shard for shard, _ in self.changed)]
        return sorted(shards, key=lambda shard: shard.index)


def compare(
    config: RunConfig,
    weights: Mapping[str, str],
    shards: Sequence[ShardSpec],
    manifests: Iterable[ShardManifest],
) -> Difference:
    """Compare what is finished with what is asked for; `weights` are digests by stage."""
    finished = {manifest.index: manifest for manifest in manifests}
    unchanged, new, changed = [], [], []
    for shard in shards:
        expected, manifest = fingerprints(config, weights, shard), finished.get(shard.index)
        if manifest is None:
            new.append(shard)
        elif manifest.fingerprint == expected["publish"]:
            unchanged.append(shard)
        else:
            changed.append((shard, _differing(manifest, expected, config)))
    return Difference(tuple(unchanged), tuple(new), tuple(changed))


def images_by_need(
    storage: Storage,
    config: RunConfig,
    difference: Difference,
    manifests: Iterable[ShardManifest],
) -> dict[str, int]:
    """How many images of finished shards need which stage and those after it, in order of stages.

    The key "" counts published images of unchanged shards. Where only the choice of images has
    changed, those that are newly chosen need "upscale" (or what follows it, without an upscaler)
    and the others "publish". Needs of "score" and before are those of all candidates.
    """
    of_chosen = [s for s in ("upscale", "cutout", "publish") if s not in stages_off(config)]
    finished = {manifest.index: manifest for manifest in manifests}
    counts = Counter({"": sum(finished[shard.index].kept for shard in difference.unchanged)})
    for shard, stages in difference.changed:
        first = stages[0]
        if first not in of_chosen:
            counts[first] += finished[shard.index].images
            continue
        chosen = _chosen(storage, shard, config.score)
        table = storage.read_table(layout.metadata_path(shard.index), ["image_id"])
        before = set(table.column("image_id").to_pylist())
        counts[of_chosen[0]] += len(chosen - before)
        counts[first] += len(chosen & before)
    return {stage: counts[stage] for stage in ("", *STAGES) if counts[stage]}


def _chosen(storage: Storage, shard: ShardSpec, selection: ScoreConfig) -> set[str]:
    table = storage.read_table(layout.stage_path("score", shard.index))
    return kept(from_table(table, ScoreRecord), selection)


def finished_run(config: RunConfig, weights: Mapping[str, str]) -> RunManifest | None:
    """The manifest of the run, if every prompt of the table is in a finished shard and reported.

    Writes nothing. The table is read only where the output looks finished.
    """
    storage = Storage(config.output)
    try:
        run = read_run_manifest(storage)
        manifests = read_shard_manifests(storage)
    except ShardError:  # damaged: the run says so, and makes it again
        return None
    if run is None or run.config_digest != config.digest():
        return None
    plan = plan_run(config, storage, write=False)
    if run.tables.get(plan.table) != {"rows": plan.rows, "removed": plan.removed}:
        return None
    todo = compare(config, weights, plan.shards, manifests).todo
    with suppress(DamagedError):  # the rejects of a table: its next reading makes them again
        return None if todo else current_report(storage, config, len(plan.shards))
    return None


def _differing(
    manifest: ShardManifest, expected: Mapping[str, str], config: RunConfig
) -> tuple[str, ...]:
    skipped = stages_off(config)
    return tuple(
        stage
        for stage, fingerprint in expected.items()
        if stage not in skipped
        and (stage not in manifest.stages or manifest.stages[stage].fingerprint != fingerprint)
    )
