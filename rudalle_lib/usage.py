"""What a run took: images a second, devices that idled, and the price of a published image.

Worked out from the shards' manifests alone: every stage notes how long it held its devices and when
it gave them back. So it is the same whichever process or machine did the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from rudalle_lib.records import ShardManifest, StageArtifact
from rudalle_lib.run_figures import RunUsage

CLOCK = 0.02
"""Seconds by which one stage may seem to begin before another gave the device back."""


class Span(NamedTuple):
    """When a stage held devices, in seconds of Unix time, and how many."""

    start: float
    end: float
    devices: int


def measure_usage(
    manifests: Sequence[ShardManifest], started: str, finished: str, price: float | None = None
) -> RunUsage:
    """What the run between two moments took.

    Args:
        manifests: of all finished shards.
        started, finished: of the run that reports, ISO 8601.
        price: of a device for an hour, in any currency.
    """
    begin, end = _seconds(started), _seconds(finished)
    wall = max(end - begin, 0.0)
    spans = list(_spans(manifests, begin))
    devices = most_at_once(spans)
    busy = sum((span.end - span.start) * span.devices for span in spans)
    drawn = sum(m.images for m in manifests if _made_since(m.stages.get("generate"), begin))
    hours = device_seconds(manifests) / 3600
    cost = None if price is None else hours * price
    published = sum(manifest.kept for manifest in manifests)
    return RunUsage(
        seconds=round(wall, 3),
        images_per_second=round(drawn / wall, 3) if drawn and wall else None,
        devices=devices,
        idle_share=round(max(0.0, 1 - busy / (devices * wall)), 4) if devices and wall else None,
        device_hours=round(hours, 6),
        cost=None if cost is None else round(cost, 6),
        cost_per_published=None if cost is None or not published else round(cost / published, 9),
    )


def device_seconds(manifests: Sequence[ShardManifest]) -> float:
    """Seconds that all stages held devices, summed over devices."""
    artifacts = (artifact for manifest in manifests for artifact in manifest.stages.values())
    return sum(artifact.seconds * artifact.devices for artifact in artifacts)


def most_at_once(spans: Sequence[Span]) -> int:
    """The most devices that were held at the same time."""
    changes = [(span.start + CLOCK, span.devices) for span in spans]
    changes += [(max(span.end - CLOCK, span.start + CLOCK), -span.devices) for span in spans]
    held = most = 0
    for _, change in sorted(changes, key=lambda item: (item[0], -item[1])):
        held += change
        most = max(most, held)
    return most


def _spans(manifests: Sequence[ShardManifest], begin: float) -> Iterator[Span]:
    """Of the stages that ended after `begin`: those before are another run's."""
    for manifest in manifests:
        for artifact in manifest.stages.values():
            if _made_since(artifact, begin):
                end = _seconds(artifact.until)
                yield Span(max(end - artifact.seconds, begin), end, artifact.devices)


def _made_since(artifact: StageArtifact | None, begin: float) -> bool:
    if artifact is None or not artifact.devices:
        return False
    return _seconds(artifact.until) >= begin


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
