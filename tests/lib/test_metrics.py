"""The figures of an output as Prometheus reads them, by its own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from rudalle_lib.metrics import prometheus_text
from rudalle_lib.records import RunManifest, RunTotals
from rudalle_lib.run_figures import RunUsage

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


def test_a_finished_run_gives_all_figures_that_it_has() -> None:
    found = figures(prometheus_text(RUN.name, 4, RUN))
    assert found["images_published", RUN.name, None, None] == 118
    assert found["shards_planned", RUN.name, None, None] == 4
    assert found["stage_seconds", RUN.name, "generate", None] == 41.5
    assert found["stage_waiting_seconds", RUN.name, "generate", None] == 2.0
    assert found["rejected", RUN.name, None, "duplicate"] == 1
    assert found["last_run_idle_ratio", RUN.name, None, None] == 0.25
    assert found["last_run_timestamp_seconds", RUN.name, None, None] == 1767225600
    assert not any(str(name).startswith("cost") for name, *_ in found)


def test_a_run_under_way_gives_what_is_finished() -> None:
    found = figures(prometheus_text("s3://bucket/run", 4, None, TOTALS))
    assert found["shards_finished", "s3://bucket/run", None, None] == 3
    assert not any(str(name).startswith("last_run") for name, *_ in found)
