"""The dashboard for Grafana asks only for metrics that are exported."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from rudalle_lib.report.prometheus import PREFIX, prometheus_text
from rudalle_lib.schema.records import RunManifest, RunTotals, RunUsage

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"

TOTALS = RunTotals(rejected={"unsafe": 1}, seconds={"generate": 1.0}, waiting={"generate": 1.0})
USAGE = RunUsage(60.0, 8.5, 2, 0.25, 0.02, 1.0, 0.1)
ENDED = "2026-01-01T00:00:00+00:00"
RUN = RunManifest("run", {}, "", {}, {}, 4, TOTALS, ENDED, ENDED, {}, USAGE)


def exported() -> dict[str, set[str]]:
    """All metrics, each with the names of its labels."""
    families = text_string_to_metric_families(prometheus_text("run", 4, RUN))
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return found


def expressions() -> list[str]:
    variables = [variable["query"] for variable in dashboard()["templating"]["list"]]
    targets = [target for panel in dashboard()["panels"] for target in panel["targets"]]
    return [*variables[1:], *(target["expr"] for target in targets)]


def test_all_metrics_and_labels_are_exported() -> None:
    known, asked = exported(), set[str]()
    for expression in expressions():
        names = re.findall(rf"{PREFIX}\w+", expression)
        assert names, expression
        labels = re.findall(r"by \(([^)]*)\)|(\w+)=~|, (\w+)\)$", expression)
        for label in ", ".join("".join(found) for found in labels).split(", "):
            assert all(label in known[name] for name in names if label), expression
        asked.update(names)
    assert asked <= known.keys()
    left_out = known.keys() - asked
    assert {name.removeprefix(PREFIX) for name in left_out} <= {
        "prompts", "images_drawn", "images_bytes", "last_run_images_drawn", "last_run_seconds",
        "last_run_devices", "cost",
    }  # fmt: skip


def test_legends_use_labels_that_are_left() -> None:
    known = exported()
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            (metric, *_) = re.findall(rf"{PREFIX}\w+", target["expr"])
            grouped = re.search(r"by \(([^)]*)\)", target["expr"])
            left = set(grouped[1].split(", ")) if grouped else known[metric]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= left, target


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 10
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        apart = [
            a[start] + a[size] <= b[start]
            for start, size in (("x", "w"), ("y", "h"))
            for a, b in ((one, other), (other, one))
        ]
        assert any(apart), (one, other)
    assert all(place["x"] + place["w"] <= 24 for place in (panel["gridPos"] for panel in panels))
