"""What `run.json` tells of a run besides its totals: its scores, and what it took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """Scores of the published images, cosines in [-1, 1]; `bins` counts them in equal steps from
    the lowest to the highest.
    """

    lowest: float
    mean: float
    highest: float
    bins: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RunUsage:
    """What a run took.

    Of the run that wrote it, from its start to its report: `seconds`, the images that it drew a
    second (None where it drew none), the most `devices` that were at work at once, and the share of
    their time in which they were not (`idle_share`; None where none was).
    Of all finished shards: `device_hours`, and their cost where there is a price.
    """

    seconds: float = 0.0
    images_per_second: float | None = None
    devices: int = 0
    idle_share: float | None = None
    device_hours: float = 0.0
    cost: float | None = None
    cost_per_published: float | None = None
