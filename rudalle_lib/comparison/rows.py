"""The rows of a comparison: what people read in a terminal, on a page and on Prefect's pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rudalle_lib.comparison.drift import MIN_GROUP, Comparison, common_groups, score_distance
from rudalle_lib.comparison.figures import Figures, Slice
from rudalle_lib.escaping import markdown_text

MISSING = "-"
"""Shown for a figure that a dataset does not have."""

MAX_GROUPS = 50
"""Groups that are shown: those with the most candidates."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the scores in JSON."""


@dataclass(frozen=True)
class Row:
    """One figure of both datasets.

    Attributes:
        label: what it is.
        before, after: the figures as text.
        change: how far they are apart, in words; may be empty.
        measure: the measure of `drift.MEASURES` that is in `change`, if any.
    """

    label: str
    before: str
    after: str
    change: str = ""
    measure: str = ""


def comparison_rows(comparison: Comparison) -> list[Row]:
    """The figures of both datasets, row by row."""
    return [*_counts(comparison), *_quality(comparison), *_costs(comparison)]


def _counts(found: Comparison) -> Iterator[Row]:
    pair = _pairs(found)
    yield pair("Prompts", lambda one: f"{one.whole.prompts:,}")
    yield pair("Candidate images", lambda one: f"{one.whole.drawn:,}")
    yield pair("Published images", lambda one: f"{one.whole.kept:,}")
    yield pair("Acceptance", lambda one: percent(one.whole.acceptance), "acceptance")
    for reason in sorted({*found.before.run.totals.rejected, *found.after.run.totals.rejected}):
        yield pair(f"... {reason}", lambda one, r=reason: f"{one.run.totals.rejected.get(r, 0):,}")


def _quality(found: Comparison) -> Iterator[Row]:
    pair = _pairs(found)
    yield pair("Mean score", lambda one: number(one.whole.mean_score), "score")
    groups = len(common_groups(found.before, found.after))
    if groups:
        yield pair("Groups", lambda one: f"{len(one.groups):,}", "group_acceptance")
        yield Row("... scores", "", "", _told(found, "group_score"), "group_score")
    yield pair(
        f"Diversity, {found.after.sample.method}",
        lambda one: number(one.sample.diversity),
        "diversity",
    )
    yield pair("... within a prompt", lambda one: number(one.sample.within_prompts))
    yield pair("Duplicates", lambda one: percent(one.sample.duplicates), "duplicates")


def _costs(found: Comparison) -> Iterator[Row]:
    pair = _pairs(found)
    yield pair("Device time per published image", lambda one: seconds(one.seconds), "seconds")
    if found.before.cost is not None or found.after.cost is not None:
        yield pair("Cost per published image", lambda one: money(one.cost), "cost")


def _pairs(found: Comparison) -> Callable[..., Row]:
    def pair(label: str, of: Callable[[Figures], str], measure: str = "") -> Row:
        told = _told(found, measure) if measure else ""
        return Row(label, of(found.before), of(found.after), told, measure)

    return pair


def _told(found: Comparison, measure: str) -> str:
    """How far the datasets are apart by a measure, with its limit if there is one."""
    drift, limit = found.drift[measure], found.limits.get(measure)
    if drift is None:
        return MISSING
    forms = {
        "acceptance": f"{100 * drift:.1f} points",
        "score": f"KS {drift:.3f}",
        "group_acceptance": f"up to {100 * drift:.1f} points",
        "group_score": f"KS up to {drift:.3f}",
        "duplicates": f"{100 * drift:.1f} points",
        "seconds": f"{drift:.0%}",
        "cost": f"{drift:.0%}",
    }
    told = forms.get(measure, f"{drift:.3f}")
    if limit is None:
        return told
    return f"{told}, {'more than' if drift > limit else 'within'} {limit:g}"


def group_rows(comparison: Comparison) -> list[tuple[str, Slice, Slice]]:
    """The groups of either dataset with their slices, those with the most candidates first."""
    before, after = comparison.before.groups, comparison.after.groups
    pairs = [
        (name, before.get(name, Slice()), after.get(name, Slice())) for name in {*before, *after}
    ]
    pairs.sort(key=lambda item: (-item[1].drawn - item[2].drawn, item[0]))
    return pairs[:MAX_GROUPS]


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    before, after = comparison.before, comparison.after
    lines = [
        f"# {markdown_text(before.run.name)} and {markdown_text(after.run.name)}",
        f"{markdown_text(before.url)}, of {markdown_text(before.run.finished)}, and "
        f"{markdown_text(after.url)}, of {markdown_text(after.run.finished)}.",
        _markdown_table(
            ("", "before", "after", "change"),
            [(row.label, row.before, row.after, row.change) for row in comparison_rows(comparison)],
        ),
    ]
    if comparison.after.groups:
        lines.append(
            _markdown_table(
                ("group", "accepted before", "after", "mean score before", "after"),
                [(name, *shares(was, now)) for name, was, now in group_rows(comparison)],
            )
        )
    return "\n\n".join(lines) + "\n"


def shares(was: Slice, now: Slice) -> tuple[str, str, str, str]:
    """Acceptance before and after, and mean score before and after."""
    return (
        percent(was.acceptance),
        percent(now.acceptance),
        number(was.mean_score),
        number(now.mean_score),
    )


def _markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, (":---", *["---:"] * (len(head) - 1))]
    cells = [(markdown_text(name), *figures) for name, *figures in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *cells])


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON values."""
    return {
        "before": _values(comparison.before),
        "after": _values(comparison.after),
        "drift": dict(comparison.drift),
        "limits": dict(comparison.limits),
        "exceeded": comparison.exceeded,
        "groups": {
            name: {
                "before": _slice_values(was),
                "after": _slice_values(now),
                "score": score_distance(was.scores, now.scores),
                "counts": min(was.kept, now.kept) >= MIN_GROUP,
            }
            for name, was, now in group_rows(comparison)
        },
    }


def _values(figures: Figures) -> dict[str, Any]:
    scores = figures.whole.scores
    levels = [float(level) for level in np.quantile(scores, QUANTILES)] if scores else []
    return {
        "output": figures.url,
        "name": figures.run.name,
        "finished": figures.run.finished,
        **_slice_values(figures.whole),
        "score_quantiles": dict(zip(map(str, QUANTILES), levels, strict=False)),
        "rejected": dict(figures.run.totals.rejected),
        "sample": asdict(figures.sample),
        "device_seconds_per_published": figures.seconds,
        "cost_per_published": figures.cost,
    }


def _slice_values(part: Slice) -> dict[str, Any]:
    return {
        "prompts": part.prompts,
        "drawn": part.drawn,
        "published": part.kept,
        "acceptance": part.acceptance,
        "mean_score": part.mean_score,
    }


def percent(share: float | None) -> str:
    """A share as "12.5%"."""
    return MISSING if share is None else f"{share:.1%}"


def number(value: float | None) -> str:
    """A figure with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """Seconds with three significant digits."""
    return MISSING if value is None else f"{value:.3g} s"


def money(value: float | None) -> str:
    """A price, with the currency of the run left out."""
    return MISSING if value is None else f"{value:,.6f}"
