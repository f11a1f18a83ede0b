"""A comparison as one self-contained page, in the style of the gallery; it needs no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from rudalle_lib.comparison.drift import Comparison, score_distance
from rudalle_lib.comparison.figures import Figures, Slice
from rudalle_lib.comparison.rows import Row, comparison_rows, group_rows, number, percent
from rudalle_lib.escaping import html_text
from rudalle_lib.humanize import counted
from rudalle_lib.report.templates import fill, read_template

BINS = 40
"""Bins of the histograms of scores."""

HEIGHT = 100.0
"""Height of the histogram in its own units; its width is `BINS`."""


def render_comparison(comparison: Comparison) -> str:
    """Render the page as HTML."""
    before, after = comparison.before, comparison.after
    names = [html_text(figures.run.name) for figures in (before, after)]
    title = names[0] if names[0] == names[1] else f"{names[0]} and {names[1]}"
    return fill(
        "comparison.html",
        {
            "title": title,
            "font_regular": base64.b64encode(read_template("Manrope-Regular.ttf")).decode(),
            "font_semibold": base64.b64encode(read_template("Manrope-SemiBold.ttf")).decode(),
            "style": read_template("gallery.css").decode()
            + read_template("comparison.css").decode(),
            "before": _source(before),
            "after": _source(after),
            "verdict": _verdict(comparison),
            "figures": "\n".join(
                _figure_row(row, row.measure in comparison.exceeded)
                for row in comparison_rows(comparison)
            ),
            "scores": _scores(before, after),
            "groups": _groups(comparison),
        },
    )


def _source(figures: Figures) -> str:
    finished = html_text(figures.run.finished[:16].replace("T", " "))
    return f"{html_text(figures.url)}<br><span class='quiet'>finished {finished}</span>"


def _verdict(comparison: Comparison) -> str:
    if not comparison.limits:
        return ""
    names = ", ".join(comparison.exceeded)
    if not names:
        return "<p class='verdict'>Within all limits.</p>"
    return f"<p class='verdict beyond'>Beyond the limit: {html_text(names)}.</p>"


def _figure_row(row: Row, beyond: bool) -> str:
    cells = "".join(f"<td>{html_text(cell)}</td>" for cell in (row.before, row.after, row.change))
    mark = " class=beyond" if beyond else ""
    return f"<tr{mark}><th scope=row>{html_text(row.label)}</th>{cells}</tr>"


# --- scores ------------------------------------------------------------------------------------


def _scores(before: Figures, after: Figures) -> str:
    both = [*before.whole.scores, *after.whole.scores]
    if not both:
        return "<p class='quiet'>Neither has published images.</p>"
    low, high = min(both), max(both)
    edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1)
    shares = [_shares(figures.whole.scores, edges) for figures in (before, after)]
    top = max(max(one, default=0.0) for one in shares) or 1.0
    filled, outlined = (_outline(one, top) for one in shares)
    mean = " ".join(
        f"<line class='{name}' x1='{x:.2f}' x2='{x:.2f}' y1='0' y2='{HEIGHT:.0f}'/>"
        for name, figures in (("before", before), ("after", after))
        if (mean_score := figures.whole.mean_score) is not None
        and (x := BINS * (mean_score - low) / (edges[-1] - low)) is not None
    )
    return (
        f"<svg class='histogram' viewBox='0 0 {BINS} {HEIGHT:.0f}' preserveAspectRatio='none' "
        f"role='img' aria-label='Histogram of scores'><path class='before' d='{filled}'/>"
        f"<path class='after' d='{outlined}'/>{mean}</svg>"
        f"<p class='axis'><span>{low:.3f}</span><span>score</span><span>{high:.3f}</span></p>"
    )


def _shares(scores: Sequence[float], edges: np.ndarray) -> list[float]:
    counts, _ = np.histogram(scores, edges)
    return [float(count) / max(len(scores), 1) for count in counts]


def _outline(shares: Sequence[float], top: float) -> str:
    """The steps of a histogram as an SVG path."""
    steps = [f"M0 {HEIGHT:.0f}"]
    for place, share in enumerate(shares):
        steps.append(f"V{HEIGHT * (1 - share / top):.2f}H{place + 1}")
    return "".join([*steps, f"V{HEIGHT:.0f}Z"])


# --- groups ------------------------------------------------------------------------------------


def _groups(comparison: Comparison) -> str:
    rows = group_rows(comparison)
    if not rows:
        return ""
    scores = [mean for _, *parts in rows for part in parts if (mean := part.mean_score) is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    span = high - low or 1.0

    def score_share(part: Slice) -> float:
        """From a tenth for the lowest mean score to 1 for the highest."""
        return 0.0 if part.mean_score is None else 0.1 + 0.9 * (part.mean_score - low) / span

    body = "\n".join(
        f"<tr><th scope=row>{html_text(name)}<span class='quiet'>{_images(was, now)}</span></th>"
        f"<td>{_bar('before', was.acceptance or 0.0, percent(was.acceptance))}"
        f"{_bar('after', now.acceptance or 0.0, percent(now.acceptance))}</td>"
        f"<td>{_bar('before', score_share(was), number(was.mean_score))}"
        f"{_bar('after', score_share(now), number(now.mean_score))}</td>"
        f"<td>{number(score_distance(was.scores, now.scores))}</td></tr>"
        for name, was, now in rows
    )
    return (
        "<section><h2>Groups</h2><table class='groups'><thead><tr><th></th>"
        "<th scope=col>Acceptance</th>"
        f"<th scope=col>Mean score, bars from {low:.3f} to {high:.3f}</th>"
        "<th scope=col>KS of scores</th>"
        f"</tr></thead><tbody>{body}</tbody></table></section>"
    )


def _images(was: Slice, now: Slice) -> str:
    return f"{was.kept:,} and {counted(now.kept, 'image')}"


def _bar(name: str, share: float, text: str) -> str:
    return (
        f"<span class='bar {name}'><i style='--share:{share:.3f}'></i>"
        f"<b>{html_text(text)}</b></span>"
    )
