"""Format numbers, durations and names for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint such as ` (did you mean malevich-v3?)`, or an empty string if no name is similar.

    Args:
        name: an unknown name.
        known: all known names.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun in singular or plural: '1 shard', '2,000 shards'."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """A duration in two units at most: '0.4 s', '12 s', '3 min 20 s', '4 h 10 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def size(count: int) -> str:
    """A number of bytes in decimal units: '512 bytes', '71.0 kB', '4.4 MB', '1.3 GB'."""
    if count < 1000:
        return counted(count, "byte")
    value, units = count / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:,.1f} {units[0]}"


def reasons(counts: Mapping[str, int]) -> str:
    """Counts by reason, most frequent first: '12 unsafe, 3 too_similar'."""
    items = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in items)
