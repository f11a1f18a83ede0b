"""Figures of datasets that nobody has made, for tests of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rudalle_lib.comparison.figures import Figures, Slice
from rudalle_lib.comparison.sample import HASHES, SampleFigures
from rudalle_lib.schema.records import RunManifest, RunTotals


def slice_of(scores: Sequence[float], drawn: int, prompts: int = 1) -> Slice:
    """Prompts with published scores and a number of candidates."""
    return Slice(prompts, drawn, list(scores))


def made_up(
    name: str,
    groups: Mapping[str, Slice],
    diversity: float | None = 0.4,
    duplicates: float | None = 0.0,
    seconds: float | None = 2.0,
    cost: float | None = None,
    rejected: Mapping[str, int] | None = None,
    method: str = HASHES,
) -> Figures:
    """A dataset with these groups."""
    whole = Slice()
    for part in groups.values():
        whole.add(part)
    totals = RunTotals(prompts=whole.prompts, images=whole.drawn, rejected=dict(rejected or {}))
    run = RunManifest(name, {}, "d", {}, {}, 1, totals, "2026-07-12T02:00", "2026-07-12T02:40")
    sample = SampleFigures(whole.kept, method, diversity, diversity, duplicates)
    return Figures(f"/data/{name}", run, whole, dict(groups), sample, seconds, cost)
