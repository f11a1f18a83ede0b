"""The figures of an output in Prometheus' text format, for a textfile collector or a push gateway.

Everything is a gauge: the figures are read from what lies in the output, and a changed threshold
may make any of them smaller. Names follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from rudalle_lib.records import RunManifest, RunTotals

PREFIX = "rudalle_flows_"

Figure = tuple[str, str, float | None]
"""Name without its prefix, help text, value; a figure without a value is left out."""


def prometheus_text(
    name: str, planned: int, run: RunManifest | None, totals: RunTotals | None = None
) -> str:
    """The figures of an output.

    Args:
        name: of the run, the label `run` of every figure.
        planned: shards that are planned.
        run: the last run that ended, if one has.
        totals: sums over the finished shards; by default those of `run`.
    """
    sums = totals or (run.totals if run else RunTotals())
    registry = CollectorRegistry()
    for key, about, value in _figures(planned, run, sums):
        if value is not None:
            Gauge(PREFIX + key, about, ["run"], registry=registry).labels(name).set(value)
    by_label: list[tuple[str, str, str, Mapping[str, float]]] = [
        ("rejected", "Rows that were set aside, by reason.", "reason", sums.rejected),
        ("stage_seconds", "Work of a stage.", "stage", sums.seconds),
        ("stage_waiting_seconds", "Waiting of a stage for its device.", "stage", sums.waiting),
    ]
    for key, about, label, values in by_label:
        gauge = Gauge(PREFIX + key, about, ["run", label], registry=registry)
        for which, value in sorted(values.items()):
            gauge.labels(name, which).set(value)
    return generate_latest(registry).decode()


def _figures(planned: int, run: RunManifest | None, sums: RunTotals) -> Iterator[Figure]:
    yield "shards_planned", "Shards of the plan.", planned
    yield "shards_finished", "Shards that are published.", sums.shards
    yield "prompts", "Prompts in finished shards.", sums.prompts
    yield "images_drawn", "Candidates in finished shards.", sums.images
    yield "images_published", "Published images.", sums.kept
    yield "images_bytes", "Size of the published images.", sums.image_bytes
    if run is None:
        return
    usage = run.usage
    ended = datetime.fromisoformat(run.finished).timestamp()
    yield "last_run_timestamp_seconds", "When the last run ended, in Unix time.", ended
    yield "last_run_seconds", "How long the last run took.", usage.seconds
    rate = usage.images_per_second
    yield "last_run_images_per_second", "Candidates that the last run drew a second.", rate
    yield "last_run_devices", "Devices that were at work at once in the last run.", usage.devices
    yield "last_run_idle_ratio", "Share of their time in which they were not.", usage.idle_share
    yield "device_hours", "Device time of all finished shards.", usage.device_hours
    yield "cost", "Cost of the device time, in the currency of its price.", usage.cost
    per_image = usage.cost_per_published
    yield "cost_per_published_image", "Cost of a published image.", per_image
