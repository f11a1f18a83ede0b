"""The commands `run`, `plan`, `serve` and `status`: exit codes, and one message for bad input."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.cli.options import PACKAGED
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.lease_files import read_lease
from rudalle_lib.errors import ConfigError, StorageError
from rudalle_lib.prompts.plan import Plan
from rudalle_lib.storage.storage import Storage
from tests.support.tiny_run import LONG_TABLE, block_stage, snapshot

ROOT = PACKAGED.parent


NO_PROMPTS = Plan((), (), 0, 0, "table.csv", 0, {}, 0)


FIRST_LINE = "tiny: checking models, prompts and output"
"""What a run of `config` prints at once where it shows no spinner."""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def config(settings: dict[str, object], tmp_path: Path) -> Path:
    """A configuration file whose output is `tmp_path/out`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**settings, "output": str(tmp_path / "out")}))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "generate.imges=4"], "generate.imges"),
        (["--set", "generate.images=many"], "generate.images"),
        (["--set", "nonsense"], "expected key=value"),
        (["--set", "generate.model=demo-dale"], "demo-dalle"),
        (
            ["--set", "score.model=demo-dalle"],
            "'demo-dalle' is a decoder, expected a scorer",
        ),
        (["--prompts", "missing.parquet"], "missing.parquet"),
        (["--set", "prompts.columns.prompt=caption"], "caption"),
        (["--set", "runtime.devices=cuda:77"], "cuda:77"),
        (
            [
                "--set",
                "weights.offline=true",
                "--set",
                "upscale.model=realesrgan-x4",
            ],
            "realesrg",
        ),
        (["--set", "weights.folder=/nowhere"], "weights.folder: /nowhere does not exist"),
        (["--output", "in_the_way/out"], "in_the_way"),
        (["--output", "nonsense://out"], "nonsense"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in_the_way").write_text("a file")
    done = call("run", config, *arguments)
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line != FIRST_LINE]
    assert line.startswith("rudalle-flows: ") and message in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or not snapshot(tmp_path / "out")


def test_a_table_without_prompts_is_an_error_that_lists_its_columns(
    config: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("caption,theme\nx,y\n")
    done = call("run", config, "--prompts", table)
    assert done.exit_code == 2
    assert "prompt" in done.stderr and "caption" in done.stderr


def test_plan_shows_the_difference_and_writes_nothing(config: Path, tmp_path: Path) -> None:
    done = call("plan", config)
    assert done.exit_code == 0
    for part in (
        "5, 5 of them new",
        "3 new, 0 changed",
        "1 duplicate",
        "19",
        "Nothing was written",
    ):
        assert part in done.stdout
    assert not (tmp_path / "out").exists()


def test_status_of_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    done = call("status", tmp_path)
    assert done.exit_code == 2
    assert "There is no run in" in done.stderr


@pytest.mark.usefixtures("prefect_server")
def test_run_plan_status_and_run_again(config: Path, tmp_path: Path) -> None:
    done = call("run", config)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"The images are in {tmp_path}/out/data/images")
    assert "shard 00001: " in done.stderr

    shown = call("status", tmp_path / "out").stdout
    assert "3 of 3 finished" in shown and "15 drawn, 8 published" in shown

    changed = call("plan", config, "--set", "score.keep_best=1").stdout
    assert "0 new, 3 changed, 0 unchanged" in changed
    assert "publish in 3" in changed and "upscale in" not in changed

    before = snapshot(tmp_path / "out")
    again = call("run", config)
    assert again.exit_code == 0
    assert "8 of 15 images published" in again.stdout
    after = snapshot(tmp_path / "out")
    assert {path for path in after if after[path] != before.get(path)} <= {
        path for path in after if path.startswith(("rejects/plan-", "lease/"))
    }

    assert call("verify", tmp_path / "out").exit_code == 0
    tried = call("retry", tmp_path / "out", "--reason", "translation_failed")
    assert tried.exit_code == 0, tried.stderr
    assert "1 prompt in 1 shard reopened." in tried.stdout
    assert "8 of 15 images published" in tried.stdout and "shard 0" in tried.stderr
    none = call("retry", tmp_path / "out", "--reason", "too_long")
    assert none.stdout == "No prompt or image in a finished shard was rejected as too_long.\n"
    useless = call("retry", tmp_path / "out", "--reason", "duplicate")
    assert useless.exit_code == 2 and "correct the prompt table" in useless.stderr


@pytest.mark.usefixtures("prefect_server")
def test_runs_of_some_shards_make_the_dataset_together(config: Path, tmp_path: Path) -> None:
    first = call("run", config, "--shards", "1-9")
    assert first.exit_code == 0, first.stderr
    assert "Working on shards 1-9: 2 shards to do" in first.stderr
    assert "2 of 3 finished" in call("status", tmp_path / "out").stdout
    second = call("run", config, "--shards", "auto")
    assert second.exit_code == 0, second.stderr
    assert "8 of 15 images published" in second.stdout
    assert call("verify", tmp_path / "out").exit_code == 0
    done = call("run", config, "--shards", "1")
    assert done.exit_code == 0 and "8 of 15 images published" in done.stdout
    beyond = call("run", config, "--shards", "9")  # a finished dataset has no more shards, either
    assert beyond.exit_code == 2 and "no shard 9: the plan has shards 0-2" in beyond.stderr


@pytest.mark.parametrize(
    ("shards", "rules", "message"),
    [
        ("9-0", [], "neither a number, such as 7, nor two with the lower one first"),
        (
            "0",
            ["--set", "select.rules=[{keep_best: 2, per: dataset}]"],
            "rudalle-flows: select.rules compare images of different shards, so one run must see "
            "all of them: run without --shards, or give the rules a group within prompts.",
        ),
    ],
)
def test_shards_that_cannot_be_made_apart_are_one_message(
    shards: str, rules: list[str], message: str, config: Path, tmp_path: Path
) -> None:
    done = call("run", config, "--shards", shards, *rules)
    assert done.exit_code == 2 and message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line != FIRST_LINE]) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("prefect_server")
def test_a_failed_shard_is_exit_code_1(config: Path, tmp_path: Path) -> None:
    block_stage(RunConfig.load(str(config)), "score", 2)
    done = call("run", config)
    assert done.exit_code == 1
    assert "1 of 3 shards failed; run again to make only those." in done.stderr
    assert "shard 00002, score (row 8 of " in done.stderr
    assert "2 of 3 finished" in call("status", tmp_path / "out").stdout


def test_a_run_without_a_server_embeds_prefect_and_keeps_the_terminal_clean(
    config: Path, tmp_path: Path
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
    }
    environment["PREFECT_HOME"] = str(tmp_path / "prefect")
    command = [sys.executable, "-m", "flows.cli", "run", str(config)]
    first = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    told = [
        line for line in first.stderr.splitlines() if not line.startswith("Waiting for Prefect")
    ]
    assert told == [
        FIRST_LINE,
        "5 prompts in 3 shards, 5 new; 3 shards to do",
        "3 rows of the prompt table rejected: 1 bad_override, 1 duplicate, 1 empty_prompt",
        *[line for line in first.stderr.splitlines() if line.startswith("shard 0")],
    ]
    published, gallery, images = first.stdout.splitlines()
    assert re.fullmatch(
        r"8 of 15 images published from 5 prompts, \d+ rejected, \d+ s\.", published
    )
    assert gallery.endswith("index.html") and images.startswith("The images are in ")

    (tmp_path / "prefect").rename(tmp_path / "gone")  # Prefect's database is not needed
    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert second.returncode == 0
    assert second.stderr == f"{FIRST_LINE}\n"
    assert "8 of 15 images published" in second.stdout
    assert not (tmp_path / "prefect").exists()  # nothing to do: no server was started


@pytest.mark.usefixtures("prefect_server")
def test_a_terminated_run_drops_its_batch_and_the_next_one_continues(
    config: Path, tmp_path: Path
) -> None:
    from prefect.settings import PREFECT_API_URL

    (tmp_path / "long.csv").write_text(LONG_TABLE, encoding="utf-8")
    arguments = ["--prompts", tmp_path / "long.csv", "--set", "prompts.shard_size=1"]
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "run",
        str(config),
        *map(str, arguments),
    ]
    shards = tmp_path / "out" / "shards"
    deadline = time.monotonic() + 1500
    with subprocess.Popen(
        [*command, "--set", "generate.batch_size=1"],
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while not list(shards.glob("*.json")):  # any shard may be first
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        finally:
            process.terminate()
        _, stderr = process.communicate(timeout=1500)
    assert process.returncode == 143, stderr
    assert "rudalle-flows: Terminated. Finished work is kept; run the same command" in stderr
    assert "Traceback" not in stderr
    lease = read_lease(Storage(str(tmp_path / "out")))
    assert lease is not None and lease.free
    finished = {path: path.stat().st_mtime_ns for path in shards.glob("*.json")}
    assert len(finished) < 6

    again = call("run", config, *arguments, "--set", "generate.batch_size=50")
    assert again.exit_code == 0, again.stderr
    assert len(list(shards.glob("*.json"))) == 6
    assert all(path.stat().st_mtime_ns == made for path, made in finished.items())


def test_serving_needs_a_prefect_server(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        done = call("serve", config)
    assert done.exit_code == 2
    assert (
        "needs a permanent Prefect server" in done.stderr and "prefect server start" in done.stderr
    )


def test_a_server_that_does_not_answer_is_an_error_with_its_url(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    done = call("run", config)
    assert done.exit_code == 2
    assert "http://127.0.0.1:9/api does not answer" in done.stderr


def test_errors_do_not_contain_secrets(config: Path) -> None:
    done = call("run", config, "--output", "s3://key:secret@bucket/run")
    assert done.exit_code == 2
    assert "secret" not in done.stderr.replace("AWS_SECRET_ACCESS_KEY", "")


@pytest.mark.parametrize("error", [StorageError("The disk is full."), ConfigError("No answer.")])
@pytest.mark.parametrize(("todo", "code"), [(None, 2), (0, 2), (1, 1)])
def test_after_the_first_shard_was_started_no_error_means_that_nothing_was(
    todo: int | None, code: int, error: Exception, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.runtime.events import Planned, emit

    def fail(_: RunConfig) -> None:
        if todo is not None:  # the plan is written
            emit(Planned(NO_PROMPTS, todo))
        raise error

    monkeypatch.setattr("flows.prefect_settings.set_up_prefect", lambda: False)
    monkeypatch.setattr("flows.generate_dataset.generate_dataset", fail)
    done = call("run", config)
    assert done.exit_code == code
    told = "Finished work is kept; run the same command again to continue." in done.stderr
    assert str(error) in done.stderr and told == (code == 1)
