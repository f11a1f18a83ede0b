"""Predict what a run would do: which shards are done or new, and which stages must run again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import read_run_manifest, read_shard_manifests
from rudalle_lib.errors import DamagedError, ShardError
from rudalle_lib.pipeline.recorded_run import current_report
from rudalle_lib.pipeline.reuse import Missing
from rudalle_lib.pipeline.selected import decide, read_selected
from rudalle_lib.pipeline.stages import STAGES, active_stages, fingerprints, skipped_stages
from rudalle_lib.prompts.plan import Plan, plan_run
from rudalle_lib.schema.records import RunManifest, ShardManifest, ShardSpec
from rudalle_lib.selection.choices import NO_CHOICES, Choices
from rudalle_lib.storage.storage import Storage

WITHDRAWN = "withdrawn"
"""Among counts by stage: images that are published and would not be any more."""

MISSING, KEPT = "missing", "kept"
"""Among counts by stage, of shards whose prompts get another number of images: those that are
drawn in addition, and those that are drawn already and stay."""

NONE_MISSING: Mapping[int, Missing] = MappingProxyType({})
"""No shard continues what earlier runs have drawn."""


@dataclass(frozen=True)
class Difference:
    """Planned shards, by what a run would do with them.

    Attributes:
        unchanged: shards whose manifest has the expected fingerprint.
        new: shards without a manifest.
        changed: shards whose manifest has another fingerprint, each with the names of the stages
            whose results would change.
    """

    unchanged: tuple[ShardSpec, ...]
    new: tuple[ShardSpec, ...]
    changed: tuple[tuple[ShardSpec, tuple[str, ...]], ...]

    @property
    def todo(self) -> list[ShardSpec]:
        """The shards that a run would process, in order."""
        shards = [*self.new, *(shard for shard, _ in self.changed)]
        return sorted(shards, key=lambda shard: shard.index)

    @property
    def draws(self) -> bool:
        """Whether a run would draw images of any shard."""
        return bool(self.new) or any("generate" in stages for _, stages in self.changed)


def compare(
    config: RunConfig,
    weights: Mapping[str, str],
    shards: Sequence[ShardSpec],
    manifests: Iterable[ShardManifest],
    choices: Choices = NO_CHOICES,
) -> Difference:
    """Compare finished shards with a configuration.

    Args:
        config: the run.
        weights: digests of the weights by stage.
        shards: all planned shards.
        manifests: of the finished shards.
        choices: what else decides which images are kept.
    """
    finished = {manifest.index: manifest for manifest in manifests}
    unchanged, new, changed = [], [], []
    for shard in shards:
        expected = fingerprints(config, weights, shard, choices.digest(shard.index))
        manifest = finished.get(shard.index)
        if manifest is None:
            new.append(shard)
        elif manifest.fingerprint == expected["publish"]:
            unchanged.append(shard)
        else:
            changed.append((shard, _differing(manifest, expected, config)))
    return Difference(tuple(unchanged), tuple(new), tuple(changed))


def with_dropped(
    storage: Storage,
    config: RunConfig,
    difference: Difference,
    manifests: Iterable[ShardManifest],
) -> Difference:
    """The difference with the stages that run again only because their artifacts are gone.

    A shard that changes reads the artifacts of all its stages; see `pipeline.tidy`. Lists the
    storage once if any shard changes.
    """
    if not difference.changed:
        return difference
    found, skipped = set(storage.list(layout.STAGES_FOLDER)), skipped_stages(config)
    finished = {manifest.index: manifest for manifest in manifests}

    def is_gone(shard: ShardSpec, stage: str) -> bool:
        artifact = finished[shard.index].stages.get(stage)
        if artifact is None or stage == "publish":
            return False
        return storage.relative(artifact.uri) not in found

    return replace(
        difference,
        changed=tuple(
            (
                shard,
                tuple(
                    stage
                    for stage in STAGES
                    if stage not in skipped and (stage in stages or is_gone(shard, stage))
                ),
            )
            for shard, stages in difference.changed
        ),
    )


def images_by_need(
    storage: Storage,
    config: RunConfig,
    difference: Difference,
    manifests: Iterable[ShardManifest],
    choices: Choices = NO_CHOICES,
    missing: Mapping[int, Missing] = NONE_MISSING,
) -> dict[str, int]:
    """Count the images of finished shards by the first stage that must process them again.

    If only the selection of images has changed, newly selected images need "upscale" (or the stage
    after it, without an upscaler) and the others "publish". For stages before the selection, all
    candidates are counted.

    Args:
        storage: the output.
        config: the run.
        difference: of the run.
        manifests: of the finished shards.
        missing: by index, of the changed shards that continue what earlier runs have drawn.

    Returns:
        The counts that are not 0, by stage, in the order of the stages. The key "" counts the
        published images of unchanged shards, `MISSING` and `KEPT` those of shards whose drawing is
        continued, and `WITHDRAWN`, the last one, images that are published and no longer selected.
    """
    after_selection = [one.name for one in active_stages(config) if one.per == "kept image"]
    finished = {manifest.index: manifest for manifest in manifests}
    counts = Counter({"": sum(finished[shard.index].kept for shard in difference.unchanged)})
    for shard, stages in difference.changed:
        first = stages[0]
        if shard.index in missing:
            counts[MISSING] += missing[shard.index].at_least
            counts[KEPT] += missing[shard.index].kept
            continue
        if first not in after_selection:
            counts[first] += finished[shard.index].images
            continue
        manifest = finished[shard.index]
        generated, scored = manifest.stages["generate"], manifest.stages["score"]
        choice = choices.of(shard.index)
        selected = read_selected(storage, generated, scored, config.score, choice)
        table = storage.read_table(manifest.metadata.path, ["image_id"])
        before = set(table.column("image_id").to_pylist())
        counts[after_selection[0]] += len(selected - before)
        counts[first] += len(selected & before)
        counts[WITHDRAWN] += len(before - selected)
    return {
        stage: counts[stage] for stage in ("", MISSING, KEPT, *STAGES, WITHDRAWN) if counts[stage]
    }


def finished_run(config: RunConfig, weights: Mapping[str, str]) -> RunManifest | None:
    """The run manifest, if all prompts of the table are in finished shards and in the report.

    Writes nothing. The table is read only if the output looks finished.
    """
    storage = Storage(config.output)
    try:
        run = read_run_manifest(storage)
        manifests = read_shard_manifests(storage)
    except ShardError:  # damaged: the run reports and rebuilds it
        return None
    if run is None or run.config_digest != config.digest():
        return None
    plan = plan_run(config, storage, write=False)
    if run.tables.get(plan.table) != {"rows": plan.rows, "removed": plan.removed}:
        return None
    choices, _ = decide(config, weights, storage, written_shards(plan), manifests)
    todo = compare(config, weights, plan.shards, manifests, choices).todo
    selection = choices.record(plan.shards)
    with suppress(DamagedError):  # the rejects of a table: reading the table writes them again
        return None if todo else current_report(storage, config, len(plan.shards), selection)
    return None


def written_shards(plan: Plan) -> list[ShardSpec]:
    """The shards of a plan whose plan files exist, if the plan was not written."""
    return [shard for shard in plan.shards if shard.index not in set(plan.new_shards)]


def _differing(
    manifest: ShardManifest, expected: Mapping[str, str], config: RunConfig
) -> tuple[str, ...]:
    skipped = skipped_stages(config)
    return tuple(
        stage
        for stage, fingerprint in expected.items()
        if stage not in skipped
        and (stage not in manifest.stages or manifest.stages[stage].fingerprint != fingerprint)
    )
