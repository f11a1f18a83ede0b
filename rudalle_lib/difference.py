"""What a run would do: shards that are finished, that are new, and what the others need again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rudalle_lib.config import RunConfig
from rudalle_lib.manifest import read_run_manifest, read_shard_manifests
from rudalle_lib.planning import plan_run
from rudalle_lib.records import RunManifest, ShardManifest, ShardSpec
from rudalle_lib.report import current_report
from rudalle_lib.stages import fingerprints
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


def finished_run(config: RunConfig, weights: Mapping[str, str]) -> RunManifest | None:
    """The manifest of the run, if every prompt of the table is in a finished shard and reported.

    Writes nothing. The table is read only where the output looks finished.
    """
    storage = Storage(config.output)
    run = read_run_manifest(storage)
    if run is None or run.config_digest != config.digest():
        return None
    plan = plan_run(config, storage, write=False)
    todo = compare(config, weights, plan.shards, read_shard_manifests(storage)).todo
    return None if todo else current_report(storage, config, len(plan.shards))


def _differing(
    manifest: ShardManifest, expected: Mapping[str, str], config: RunConfig
) -> tuple[str, ...]:
    skipped = {"upscale"} if config.upscale.model is None else set()
    return tuple(
        stage
        for stage, fingerprint in expected.items()
        if stage not in skipped
        and (stage not in manifest.stages or manifest.stages[stage].fingerprint != fingerprint)
    )
