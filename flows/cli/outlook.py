"""What a run of a configuration would do, found out without writing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rudalle_lib.checks.preflight import check_inputs, check_models
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.pipeline.diff import (
    Difference,
    compare,
    images_by_need,
    with_dropped,
    written_shards,
)
from rudalle_lib.pipeline.reuse import Missing, count_missing, find_reuse, list_artifacts
from rudalle_lib.pipeline.selected import decide, scored_shards
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.prompts.plan import Plan, plan_run
from rudalle_lib.schema.decisions import RuleCounts
from rudalle_lib.selection.across_shards import Selector
from rudalle_lib.storage.storage import Storage

AS_PLANNED = "as the output was begun"
ON_CPU = "for the CPU"
ON_GPUS = "for the GPUs of this machine"
ASSUMED = "assumed for a CPU: a run on GPUs chooses by their memory when it plans"
"""What an automatic number of prompts per shard is chosen for."""


@dataclass(frozen=True)
class RulesOutlook:
    """What the rules of `select` would keep of the images that are scored already.

    Attributes:
        shards: how many shards are scored.
        images: how many images they have.
        rejected: how many of these the limits of `score` and decisions by hand reject, by reason.
        rules: images before and after each rule, in all and by group.
    """

    shards: int
    images: int
    rejected: Mapping[str, int]
    rules: tuple[RuleCounts, ...]


@dataclass(frozen=True)
class Outlook:
    """What a run would do.

    Attributes:
        plan: the plan that it would make.
        difference: shards by what it would do with them.
        needs: images of finished shards by the first stage that they need, see `images_by_need`.
        damaged: a sentence per damaged manifest.
        images: number of candidates that it would draw, at least.
        selection: what rules would keep; None if there are none, or nothing is scored yet.
        most_images: number of candidates that it would draw at most: more if that is decided in
            rounds.
        shard_size_of: what the number of prompts per new shard is chosen for; empty if it is not
            chosen, or there are none.
    """

    plan: Plan
    difference: Difference
    needs: Mapping[str, int]
    damaged: tuple[str, ...]
    images: int
    selection: RulesOutlook | None = None
    most_images: int = 0
    shard_size_of: str = ""


def look_ahead(config: RunConfig) -> Outlook:
    """Find out what a run of a configuration would do.

    Raises:
        RudalleError: an input cannot be used; see `preflight.check_run`.
    """
    check_inputs(config)
    weights = weight_digests(config)
    check_models(config, weights)
    storage = Storage(config.output)
    chosen_for: list[str] = []

    def choose_size() -> int:
        size, reason = expected_shard_size(config)
        chosen_for.append(reason)
        return size

    plan = plan_run(config, storage, write=False, choose_size=choose_size)
    damaged: list[str] = []
    manifests = read_shard_manifests(storage, damaged.append)
    written = written_shards(plan)
    choices, selector = decide(config, weights, storage, written, manifests)
    changes = compare(config, weights, plan.shards, manifests, choices)
    difference = with_dropped(storage, config, changes, manifests)
    missing = _missing(config, weights, storage, plan, difference)
    changed = {shard.index for shard, stages in difference.changed}
    continued = {
        index: found for index, found in missing.items() if index in changed and found.kept
    }
    needs = images_by_need(storage, config, difference, manifests, choices, continued)
    at_least = plan.new_images + sum(found.at_least for found in missing.values())
    at_most = plan.most_new_images + sum(found.at_most for found in missing.values())
    rules = config.select.rules
    if rules and not config.select.looks_across:
        selector.read(scored_shards(config, weights, storage, written, manifests))
    selection = look_at_rules(selector)
    automatic = config.prompts.shard_size == "auto" and plan.shard_size is not None
    reason = (chosen_for or [AS_PLANNED])[0] if automatic else ""
    return Outlook(plan, difference, needs, tuple(damaged), at_least, selection, at_most, reason)


def expected_shard_size(config: RunConfig) -> tuple[int, str]:
    """The prompts per shard that a run on this machine would choose, and what they are chosen for.

    A cluster is not asked: its number is only known when a run plans there.
    """
    from rudalle_lib.generation.shard_size import cpu_shard_size, gpu_shard_size  # import torch
    from rudalle_lib.runtime.devices import resolve_devices

    section, runtime = config.generate, config.runtime
    on_cluster = runtime.runner == "ray" and runtime.ray_address is not None
    devices = [] if on_cluster else resolve_devices(runtime.devices)
    if not devices or devices[0].type != "cuda":
        decided = not on_cluster and runtime.devices == "cpu"
        return cpu_shard_size(section.images), ON_CPU if decided else ASSUMED
    places = [devices] if runtime.split_decoder else [[device] for device in devices]
    sizes = [gpu_shard_size(section, config.weights, runtime.dtype, place) for place in places]
    return min(sizes), ON_GPUS


def look_at_rules(selector: Selector) -> RulesOutlook | None:
    """What rules would keep of the shards that a selector has read; None if there are none."""
    across = selector.decide().across
    if across is None:
        return None
    counts = tuple(across.outcome.counts)
    return RulesOutlook(len(selector.indices), selector.scored, dict(selector.rejected), counts)


def _missing(
    config: RunConfig,
    weights: Mapping[str, str],
    storage: Storage,
    plan: Plan,
    difference: Difference,
) -> dict[int, Missing]:
    """Count the images of all shards that were planned before and whose tokens are not final."""
    redrawn = {shard.index for shard, stages in difference.changed if "generate" in stages}
    shards = [
        shard
        for shard in plan.shards
        if shard.index not in plan.new_shards
        and (shard.index in redrawn or shard in difference.new)
    ]
    artifacts = list_artifacts(storage, {shard.index for shard in shards})
    return {
        shard.index: count_missing(
            storage, config, weights, shard,
            find_reuse(storage, config, weights, shard, artifacts),
        )
        for shard in shards
    }  # fmt: skip
