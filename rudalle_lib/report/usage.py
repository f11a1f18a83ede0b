"""Resources used by a run: images per second, idle share of the devices, cost per published image.

Everything is computed from the shard manifests: every stage records which devices it held, for how
long, and when it released them. The result therefore does not depend on which process or machine
did the work. A GPU draws one shard while it decodes and scores another one: two stages hold it
then, and it counts once.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from rudalle_lib.schema.records import RunUsage, ShardManifest, StageArtifact

CLOCK_TOLERANCE = 0.02
"""Seconds by which a stage may appear to start before the previous one released the device."""


class Span(NamedTuple):
    """The time in which a stage held devices, in seconds of Unix time, and how many it held."""

    start: float
    end: float
    devices: int


def usual_batch_rows(manifests: Sequence[ShardManifest]) -> int:
    """The rows of the decoder with which most shards were drawn; 0 if no shard says so."""
    drawn = [m.stages["generate"].batch_rows for m in manifests if "generate" in m.stages]
    counts = Counter(rows for rows in drawn if rows)
    return counts.most_common(1)[0][0] if counts else 0


def measure_usage(
    manifests: Sequence[ShardManifest], started: str, finished: str, price: float | None = None
) -> RunUsage:
    """Measure the resources used by the run between two moments.

    Args:
        manifests: of all finished shards, including those of earlier runs.
        started: when this run started, ISO 8601.
        finished: when this run finished, ISO 8601.
        price: price per device hour, in any currency.
    """
    begin, end = _seconds(started), _seconds(finished)
    wall = max(end - begin, 0.0)
    spans = list(_spans(manifests, begin))
    devices = max_concurrent_devices(spans)
    busy = sum(map(_device_seconds, spans))
    made = [(manifest, made_since(manifest, begin)) for manifest in manifests]
    drawn = sum(
        max(manifest.images - stages["generate"].reused, 0)
        for manifest, stages in made
        if "generate" in stages
    )
    worked: Counter[str] = Counter()
    for _, stages in made:
        worked.update({stage: artifact.seconds for stage, artifact in stages.items()})
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
        drawn=drawn,
        stages={stage: round(seconds, 3) for stage, seconds in worked.items()},
    )


def made_since(manifest: ShardManifest, begin: float) -> dict[str, StageArtifact]:
    """The results of stages of a shard that were made since a moment, and not by earlier runs.

    Stages that held no device are left out: they do not say when they worked.

    Args:
        manifest: of the finished shard.
        begin: Unix time, in seconds.
    """
    made = {
        name: artifact
        for name, artifact in manifest.stages.items()
        if name != "publish" and _made_since(artifact, begin)
    }
    published = manifest.stages.get("publish")
    if published is not None and manifest.finished and _seconds(manifest.finished) >= begin:
        made["publish"] = published
    return made


def device_seconds(manifests: Sequence[ShardManifest]) -> float:
    """Return how long devices were held by any stage, in device seconds."""
    return sum(map(_device_seconds, _spans(manifests)))


def max_concurrent_devices(spans: Sequence[Span]) -> int:
    """Return the largest number of devices that were held at the same time."""
    changes = [(span.start + CLOCK_TOLERANCE, span.devices) for span in spans]
    changes += [
        (max(span.end - CLOCK_TOLERANCE, span.start + CLOCK_TOLERANCE), -span.devices)
        for span in spans
    ]
    held = max_held = 0
    for _, change in sorted(changes, key=lambda item: (item[0], -item[1])):
        held += change
        max_held = max(max_held, held)
    return max_held


def _spans(manifests: Sequence[ShardManifest], begin: float = -math.inf) -> Iterator[Span]:
    """Yield when devices were held after `begin`; earlier spans belong to other runs.

    Of a device that is known by its id, spans that touch or overlap are one.
    """
    of_device: defaultdict[str, list[Span]] = defaultdict(list)
    for manifest in manifests:
        for artifact in manifest.stages.values():
            if _made_since(artifact, begin):
                end = _seconds(artifact.until)
                span = Span(max(end - artifact.seconds, begin), end, artifact.devices)
                if not artifact.device_ids:
                    yield span
                for name in artifact.device_ids.split():
                    of_device[name].append(span._replace(devices=1))
    for spans in of_device.values():
        yield from _joined(spans)


def _joined(spans: Sequence[Span]) -> Iterator[Span]:
    """The spans of one device, those that touch or overlap as one."""
    first, *others = sorted(spans)
    for span in others:
        if span.start <= first.end:
            first = first._replace(end=max(first.end, span.end))
        else:
            yield first
            first = span
    yield first


def _device_seconds(span: Span) -> float:
    return (span.end - span.start) * span.devices


def _made_since(artifact: StageArtifact, begin: float) -> bool:
    return bool(artifact.devices) and _seconds(artifact.until) >= begin


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
