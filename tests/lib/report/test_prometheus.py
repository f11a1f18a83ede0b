"""The figures of an output, read back with Prometheus' own parser."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from rudalle_lib.report.prometheus import prometheus_text
from rudalle_lib.schema.records import RunManifest, RunTotals, RunUsage

LABELS = ("run", "stage", "reason")
TOTALS = RunTotals(3, 62, 512, 118, {"duplicate": 1}, {"generate": 41.5}, 2048, {"generate": 2.0})
USAGE = RunUsage(60.0, 8.5, 2, 0.25, 0.02, None, None)
RUN = RunManifest(
    'a "run"\n', {}, "", {}, {}, 4, TOTALS, "", "2026-01-01T00:00:00+00:00", {}, USAGE
)


def figures(text: str) -> dict[tuple[str | None, ...], float]:
    families = text_string_to_metric_families(text)
    return {
        (sample.name.removeprefix("rudalle_flows_"), *map(sample.labels.get, LABELS)): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_finished_run_has_all_figures_but_the_unknown() -> None:
    found = figures(prometheus_text(RUN.name, 4, RUN))
    assert found["images_published", RUN.name, None, None] == 118
    assert found["shards_planned", RUN.name, None, None] == 4
    assert found["stage_seconds", RUN.name, "generate", None] == 41.5
    assert found["stage_waiting_seconds", RUN.name, "generate", None] == 2.0
    assert found["rejected", RUN.name, None, "duplicate"] == 1
    assert found["last_run_idle_ratio", RUN.name, None, None] == 0.25
    assert found["last_run_timestamp_seconds", RUN.name, None, None] == 1767225600
    assert not any(str(name).startswith("cost") for name, *_ in found)


def test_a_run_that_draws_nothing_has_no_rate() -> None:
    usage = RunUsage(60.0, None, 2, 0.25, stages={"publish": 3.0})
    found = figures(prometheus_text("again", 4, replace(RUN, usage=usage)))
    assert found["last_run_images_drawn", "again", None, None] == 0
    assert found["last_run_stage_seconds", "again", "publish", None] == 3.0
    assert ("last_run_images_per_second", "again", None, None) not in found
    assert ("last_run_stage_seconds", "again", "generate", None) not in found


def test_a_running_run_has_the_figures_of_finished_shards() -> None:
    found = figures(prometheus_text("s3://bucket/run", 4, None, TOTALS))
    assert found["shards_finished", "s3://bucket/run", None, None] == 3
    assert not any(str(name).startswith("last_run") for name, *_ in found)
