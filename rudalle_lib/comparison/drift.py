"""How far two datasets are apart, and whether that is more than what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rudalle_lib.comparison.figures import Figures, Slice
from rudalle_lib.errors import ConfigError
from rudalle_lib.humanize import did_you_mean

MIN_GROUP = 20
"""Published images that a group must have in both datasets to count: with fewer, scores of the same
distribution are often far apart."""


@dataclass(frozen=True)
class Comparison:
    """Two datasets, and how far they are apart.

    Attributes:
        before, after: their figures.
        drift: by the name of a measure, see `MEASURES`; None if either dataset lacks it.
        limits: the most that is allowed, by measure.
    """

    before: Figures
    after: Figures
    drift: Mapping[str, float | None]
    limits: Mapping[str, float]

    @property
    def exceeded(self) -> list[str]:
        """The measures that are beyond their limits."""
        return [name for name, limit in self.limits.items() if (self.drift[name] or 0.0) > limit]


def compare_figures(
    before: Figures, after: Figures, limits: Mapping[str, float] | None = None
) -> Comparison:
    """Compare two datasets.

    Args:
        before, after: their figures.
        limits: from `parse_limits`.

    Raises:
        ConfigError: a limit for something that one of them lacks.
    """
    drift = {name: measure(before, after) for name, measure in MEASURES.items()}
    unknown = [name for name in limits or {} if drift[name] is None]
    if unknown:
        raise ConfigError(
            f"The limit of {', '.join(unknown)} cannot be checked: {before.url} or {after.url} has "
            "no such figure."
        )
    return Comparison(before, after, drift, dict(limits or {}))


def parse_limits(texts: Iterable[str]) -> dict[str, float]:
    """Read limits such as `acceptance=0.05`, or several divided by commas.

    Raises:
        ConfigError: an unknown measure, or something that is no number of at least 0.
    """
    limits = {}
    for text in ",".join(texts).split(",") if texts else []:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ConfigError(
                f"Cannot read the limit {text!r}: expected a measure and a number, such as "
                "acceptance=0.05."
            )
        if name not in MEASURES:
            raise ConfigError(
                f"There is no measure {name!r}{did_you_mean(name, MEASURES)}: expected one of "
                f"{', '.join(MEASURES)}."
            )
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
        if not 0 <= limits[name] < math.inf:
            raise ConfigError(f"The limit of {name} must be a number of at least 0, found {value}.")
    return limits


def score_distance(before: Sequence[float], after: Sequence[float]) -> float | None:
    """The Kolmogorov-Smirnov statistic of two samples of scores, 0 to 1.

    It is the largest difference of their cumulative distributions.
    """
    from scipy.stats import ks_2samp  # takes half a second

    if not before or not after:
        return None
    return float(ks_2samp(before, after, method="asymp").statistic)


def _difference(
    of: Callable[[Figures], float | None], relative: bool = False
) -> Callable[[Figures, Figures], float | None]:
    def measure(before: Figures, after: Figures) -> float | None:
        was, now = of(before), of(after)
        if was is None or now is None:
            return None
        if not relative:
            return abs(now - was)
        return abs(now / was - 1) if was else (math.inf if now else 0.0)

    return measure


def _largest_of_groups(
    distance: Callable[[Slice, Slice], float | None],
) -> Callable[[Figures, Figures], float | None]:
    def measure(before: Figures, after: Figures) -> float | None:
        pairs = [(before.groups[name], after.groups[name]) for name in common_groups(before, after)]
        found = [distance(was, now) for was, now in pairs if min(was.kept, now.kept) >= MIN_GROUP]
        return max((one for one in found if one is not None), default=None)

    return measure


def common_groups(before: Figures, after: Figures) -> list[str]:
    """The groups that both datasets have, in order."""
    return [name for name in before.groups if name in after.groups]


def _acceptance_distance(was: Slice, now: Slice) -> float | None:
    if was.acceptance is None or now.acceptance is None:
        return None
    return abs(now.acceptance - was.acceptance)


def _diversity_distance(before: Figures, after: Figures) -> float | None:
    if before.sample.method != after.sample.method:
        return None
    return _difference(lambda one: one.sample.diversity)(before, after)


MEASURES: Mapping[str, Callable[[Figures, Figures], float | None]] = {
    "acceptance": _difference(lambda one: one.whole.acceptance),
    "score": lambda before, after: score_distance(before.whole.scores, after.whole.scores),
    "group_acceptance": _largest_of_groups(_acceptance_distance),
    "group_score": _largest_of_groups(lambda was, now: score_distance(was.scores, now.scores)),
    "diversity": _diversity_distance,
    "duplicates": _difference(lambda one: one.sample.duplicates),
    "seconds": _difference(lambda one: one.seconds, relative=True),
    "cost": _difference(lambda one: one.cost, relative=True),
}
"""By name: the difference of the shares of published images; the Kolmogorov-Smirnov statistic of
the published scores; the largest of both over the groups that have `MIN_GROUP` images in each
dataset; the difference of the mean distances and of the shares of duplicates; the relative change
of device seconds and cost per published image."""
