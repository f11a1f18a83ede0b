"""What `plan` finds out about rules: what they would keep, without writing or running anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.outlook import AS_PLANNED, ASSUMED, ON_CPU, ON_GPUS, look_ahead
from rudalle_lib import read_images
from rudalle_lib.config.run import RunConfig
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.schema.decisions import RuleCounts
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finished_below
from tests.support.tiny_run import contents


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return finished_below(tmp_path_factory.mktemp("outlook"))


def ruled(config: RunConfig, *rules: dict[str, object]) -> RunConfig:
    return RunConfig.model_validate({**config.model_dump(), "select": {"rules": rules}})


def test_rules_are_counted_by_group_and_nothing_is_written(config: RunConfig) -> None:
    before = contents(Path(config.output), "")
    published = read_images(config.output)
    themes = published["theme"].value_counts()
    found = look_ahead(ruled(config, {"keep_best": 1}, {"keep_share": 0.5, "per": "theme"}))
    assert found.selection is not None
    assert (found.selection.shards, found.selection.rejected["not_in_best_k"] > 0) == (3, True)
    first, second = found.selection.rules
    assert first == RuleCounts("keep_best 1 per prompt", len(published), 4)
    assert (second.before, second.rule) == (4, "keep_share 0.5 per theme")
    assert [one.group for one in second.groups] == [f"theme={one}" for one in sorted(themes.index)]
    assert sum(one.kept for one in second.groups) == second.kept == found.needs["publish"]
    assert found.needs["withdrawn"] == len(published) - second.kept
    assert contents(Path(config.output), "") == before
    assert look_ahead(config).selection is None


def test_the_command_prints_each_rule_and_group(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "run.yaml"
    path.write_text(
        json.dumps(ruled(config, {"keep_share": 0.5, "per": "theme"}).public_dict()), "utf-8"
    )
    done = CliRunner().invoke(app, ["plan", str(path)])
    assert done.exit_code == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(line.startswith("rule 0 keep_share 0.5 per theme: 4 of 8 kept") for line in lines)
    assert any(line.startswith("theme=malevich: 2 of 4 kept, 2 dropped, from") for line in lines)
    values = json.loads(CliRunner().invoke(app, ["plan", str(path), "--json"]).stdout)
    assert values["selection"]["rules"][0]["kept"] == 4
    assert values["selection"]["rules"][0]["groups"][0]["before"] == 4


def test_an_automatic_shard_size_says_what_it_is_chosen_for(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(output: str = "new", **runtime: object) -> RunConfig:
        values = config.model_dump()
        values["prompts"] |= {"shard_size": "auto"}
        values["runtime"] |= runtime
        return RunConfig.model_validate({**values, "output": str(tmp_path / output)})

    def of(run: RunConfig) -> tuple[int | None, str]:
        found = look_ahead(run)
        return found.plan.shard_size, found.shard_size_of

    assert of(config) == (None, "")  # a number, and nothing is new
    assert of(changed()) == (64, ON_CPU)
    with monkeypatch.context() as patch:
        patch.setattr(
            "rudalle_lib.runtime.devices.resolve_devices", lambda _: [torch.device("cpu")]
        )
        assert of(changed(devices="auto")) == (64, ASSUMED)
    assert of(changed(runner="ray", ray_address="10.0.0.1:6379")) == (64, ASSUMED)
    with monkeypatch.context() as patch:
        gpus = [torch.device("cuda", index) for index in range(2)]
        patch.setattr("rudalle_lib.runtime.devices.resolve_devices", lambda _: gpus)
        assert of(changed()) == (64, ON_GPUS)  # batches of 8 images, of which 32 make 256
    plan_run(changed("begun"), Storage(str(tmp_path / "begun")), choose_size=lambda: 3)
    table = tmp_path / "more.csv"
    table.write_text("prompt\nсиний квадрат\n", encoding="utf-8")
    begun = changed("begun")
    grown = begun.prompts.model_copy(update={"uri": str(table)})
    assert of(begun.model_copy(update={"prompts": grown})) == (3, AS_PLANNED)


def test_the_command_prints_what_is_assumed_of_shards(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path, settings = tmp_path / "run.yaml", config.public_dict()
    settings["prompts"] |= {"shard_size": "auto"}
    path.write_text(json.dumps({**settings, "output": str(tmp_path / "out")}), "utf-8")
    done = CliRunner().invoke(app, ["plan", str(path)])
    assert done.exit_code == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "of at most 64 prompts, for the CPU" in lines
    values = json.loads(CliRunner().invoke(app, ["plan", str(path), "--json"]).stdout)
    assert values["shards"]["prompts_per_new_shard"] == 64
    assert values["shards"]["shard_size_chosen"] == ON_CPU
