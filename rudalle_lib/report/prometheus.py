"""The figures of an output in Prometheus' text format, for a textfile collector or a Pushgateway.

Every figure is a gauge, because it is read from the current output, and a changed threshold may
make any of them smaller. Names follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from rudalle_lib.escaping import safe_text
from rudalle_lib.schema.records import RunManifest, RunTotals

PREFIX = "rudalle_flows_"
"""Prefix of every metric name."""

Figure = tuple[str, str, float | None]
"""Metric name without the prefix, help text, value; metrics without a value are omitted."""


def prometheus_text(
    name: str, planned: int, run: RunManifest | None, totals: RunTotals | None = None
) -> str:
    """Render the figures of an output in Prometheus' text format.

    Args:
        name: name of the run, the label `run` of every metric.
        planned: number of planned shards.
        run: the last finished run, if any.
        totals: sums over the finished shards; by default those of `run`.
    """
    name = safe_text(name)  # the format escapes quotes, backslashes and newlines itself
    sums = totals or (run.totals if run else RunTotals())
    registry = CollectorRegistry()
    for key, help_text, value in _figures(planned, run, sums):
        if value is not None:
            Gauge(PREFIX + key, help_text, ["run"], registry=registry).labels(name).set(value)
    by_label: list[tuple[str, str, str, Mapping[str, float]]] = [
        ("rejected", "Rejected prompts and images by reason.", "reason", sums.rejected),
        ("stage_seconds", "Working time by stage of all runs, in seconds.", "stage", sums.seconds),
        (
            "last_run_stage_seconds",
            "Working time by stage of the last run, in seconds.",
            "stage",
            run.usage.stages if run else {},
        ),
        (
            "stage_waiting_seconds",
            "Time spent waiting for a device by stage, in seconds.",
            "stage",
            sums.waiting,
        ),
    ]
    for key, help_text, label, values in by_label:
        gauge = Gauge(PREFIX + key, help_text, ["run", label], registry=registry)
        for label_value, value in sorted(values.items()):
            gauge.labels(name, safe_text(label_value)).set(value)
    return generate_latest(registry).decode()


def _figures(planned: int, run: RunManifest | None, sums: RunTotals) -> Iterator[Figure]:
    yield "shards_planned", "Planned shards.", planned
    yield "shards_finished", "Finished (published) shards.", sums.shards
    yield "prompts", "Prompts in finished shards.", sums.prompts
    yield "images_drawn", "Candidate images drawn in finished shards.", sums.images
    yield "images_published", "Published images.", sums.kept
    yield "images_bytes", "Size of the published images in bytes.", sums.image_bytes
    if run is None:
        return
    usage = run.usage
    ended = _timestamp(run.finished)
    yield "last_run_timestamp_seconds", "Unix time at which the last run finished.", ended
    yield "last_run_seconds", "Duration of the last run in seconds.", usage.seconds
    rate = usage.images_per_second
    yield "last_run_images_drawn", "Candidate images drawn in the last run.", usage.drawn
    yield "last_run_images_per_second", "Candidate images drawn per second in the last run.", rate
    yield (
        "last_run_devices",
        "Largest number of devices in use at the same time in the last run.",
        usage.devices,
    )
    yield (
        "last_run_idle_ratio",
        "Share of device time that was idle in the last run, 0 to 1.",
        usage.idle_share,
    )
    yield "device_hours", "Device time of all finished shards in hours.", usage.device_hours
    yield (
        "cost",
        "Cost of the device time, in the currency of runtime.price_per_device_hour.",
        usage.cost,
    )
    per_image = usage.cost_per_published
    yield "cost_per_published_image", "Cost per published image.", per_image


def _timestamp(time: str) -> float | None:
    """Return the Unix time of a time in ISO 8601; None if `run.json` contains something else."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return None
