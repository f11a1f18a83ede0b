"""The losses of a training as a picture in SVG, which every browser shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 40, 36
COLOURS = ("#8A8A86", "#D42A1E")
POINTS = 600
"""The most points of a line; of more, means are drawn."""

Line = Sequence[tuple[float, float]]
"""Points (step, loss) in order."""


def loss_lines(figures: Iterable[Mapping[str, float]]) -> dict[str, Line]:
    """The lines of a picture, by label: the loss of each step, and the held-out loss."""
    found: dict[str, list[tuple[float, float]]] = {"loss": [], "held-out loss": []}
    for one in figures:
        for label, key in (("loss", "loss"), ("held-out loss", "held_out_loss")):
            if key in one:
                found[label].append((one["step"] + 1, one[key]))
    return {label: _thinned(points) for label, points in found.items() if points}


def _thinned(points: list[tuple[float, float]]) -> Line:
    size = math.ceil(len(points) / POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def draw_losses(lines: Mapping[str, Line], title: str) -> str:
    """Draw lines in one picture.

    Args:
        lines: at least one, by label; at most as many as `COLOURS`.
        title: the heading.

    Returns:
        The text of an SVG file, always the same for the same lines.
    """
    steps = [x for line in lines.values() for x, _ in line]
    losses = [y for line in lines.values() for _, y in line]
    low, high = min(losses), max(losses)
    high = high if high > low else low + 1.0
    last = max(*steps, 1.0)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#F4F4F2"/>',
        f'<text x="{LEFT}" y="24" font-size="15" fill="#161616">{escape(title)}</text>',
    ]
    for number in range(5):
        loss = low + (high - low) * number / 4
        parts.append(
            f'<path d="M{LEFT} {y(loss):.1f}H{WIDTH - RIGHT}" stroke="#DDDDD8"/>'
            f'<text x="{LEFT - 8}" y="{y(loss) + 4:.1f}" text-anchor="end" fill="#161616">'
            f"{loss:.3g}</text>"
        )
    for step in (0.0, last / 2, last):
        parts.append(
            f'<text x="{x(step):.1f}" y="{HEIGHT - 12}" text-anchor="middle" fill="#161616">'
            f"{step:,.0f}</text>"
        )
    for number, ((label, line), colour) in enumerate(zip(lines.items(), COLOURS, strict=False)):
        path = "L".join(f"{x(step):.1f} {y(loss):.1f}" for step, loss in line)
        dot = f'<circle cx="{x(line[-1][0]):.1f}" cy="{y(line[-1][1]):.1f}" r="3" fill="{colour}"/>'
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dot}')
        parts.append(
            f'<text x="{WIDTH - RIGHT}" y="{18 + 16 * number}" text-anchor="end" fill="{colour}">'
            f"{escape(label)}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def is_measurement(figures: Mapping[str, float]) -> bool:
    """Whether the figures of a step hold more than the losses that were learnt from."""
    return any(name.startswith("held_out") for name in figures)


def describe(figures: Mapping[str, float]) -> str:
    """The losses of a step in a line."""
    shown = {name: value for name, value in figures.items() if name.endswith("loss")}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in shown.items())
