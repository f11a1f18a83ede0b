"""A preview draws the same images as the run, forecasts the run, and does not touch its output."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from rudalle_lib.config.run import RunConfig
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.prompts.plan import plan_prompts, plan_run
from rudalle_lib.report.preview import choose_prompts
from rudalle_lib.storage.storage import Storage
from tests.support.tiny_run import configure, contents, snapshot

SETTINGS = {
    "runtime": {"devices": "cpu", "threads": 1, "price_per_device_hour": 3.6},
    "score": {"min_score": -1.0, "keep_best": 2},
}


@pytest.fixture
def config(settings: dict[str, object], tmp_path: Path) -> RunConfig:
    return configure(settings, tmp_path / "out", **SETTINGS)


def test_it_prints_yield_time_storage_and_cost_and_writes_only_the_sheet(
    config: RunConfig, tmp_path: Path
) -> None:
    file, sheet = tmp_path / "tiny.yaml", tmp_path / "sheet.png"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    done = CliRunner().invoke(app, ["preview", str(file), "-n", "3", "--to", str(sheet)])
    assert done.exit_code == 0, done.stderr
    rows = {line[:16].strip(): line[16:].strip() for line in done.stdout.splitlines()}
    assert rows["drawn"].startswith("3 prompts, ")
    assert "would be published" in rows["yield"] and "not_in_best_k" in rows["rejected"]
    assert rows["whole table"] == "5 prompts, 19 candidates"
    for what in ("time", "device time", "storage", "cost", "published"):
        assert rows[f"... {what}"].startswith("about ")
    assert "per published image" in rows["... cost"]
    assert Image.open(io.BytesIO(sheet.read_bytes())).format == "PNG"
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "sheet.png"}


def test_rules_are_applied_to_the_sample(config: RunConfig, tmp_path: Path) -> None:
    rules = [{"keep_best": 2}, {"keep_best": 5, "per": "dataset"}]
    changed = configure(config.model_dump(), tmp_path / "out", score={"keep_best": None})
    data = changed.model_dump(mode="json") | {"select": {"rules": rules}}
    file, sheet = tmp_path / "tiny.yaml", tmp_path / "sheet.png"
    file.write_text(yaml.safe_dump(data))
    done = CliRunner().invoke(app, ["preview", str(file), "-n", "3", "--to", str(sheet)])
    assert done.exit_code == 0, done.stderr
    rows = {line[:16].strip(): line[16:].strip() for line in done.stdout.splitlines()}
    assert rows["yield"].startswith("3 of "), "3 of 5 prompts have 3 of 5 places"
    assert "over_budget" in rows["rejected"] and "not_in_best_k" in rows["rejected"]
    assert rows["rule 0"].startswith("keep_best 2 per prompt: ")
    assert rows["rule 1"].startswith("keep_best 3 per dataset: 3 of ")


def test_its_images_are_identical_to_those_of_the_run(config: RunConfig, tmp_path: Path) -> None:
    from tasks.without_prefect import process_shard

    weights = weight_digests(config)
    whole = plan_run(config, Storage(config.output))
    for shard in whole.shards:
        process_shard(config, weights, shard)
    temporary = config.model_copy(update={"output": str(tmp_path / "temporary")})
    sample = choose_prompts(config.prompts, config.generate.images, 3)
    process_shard(temporary, weights, plan_prompts(Storage(temporary.output), sample.chosen))

    def images(output: str) -> dict[str, bytes]:
        found = contents(Path(output), "data/images")
        return {path.rpartition("/")[2]: content for path, content in found.items()}

    shown, run = images(temporary.output), images(config.output)
    assert shown and shown.items() <= run.items()


def test_without_a_price_it_names_the_setting_and_an_unwritable_sheet_is_an_error(
    config: RunConfig, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    free = ["--set", "runtime.price_per_device_hour=null", "--to", str(tmp_path / "sheet.png")]
    done = CliRunner().invoke(app, ["preview", str(file), "-n", "1", *free])
    assert "runtime.price_per_device_hour" in done.stdout
    before = snapshot(tmp_path)
    done = CliRunner().invoke(app, ["preview", str(file), "-n", "1", "--to", "/nowhere/sheet.png"])
    assert done.exit_code == 2 and "Cannot write /nowhere/sheet.png" in done.stderr
    assert snapshot(tmp_path) == before
