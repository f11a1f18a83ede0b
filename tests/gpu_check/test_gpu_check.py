"""The whole of `make gpu-check` on the CPU, and what it says when something is wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.generation.sampling import GeneratedTokens
from rudalle_lib.weights.loading import load_decoder, load_scorer, load_upscaler, load_vqgan
from tests.gpu_check import equality, goldens, long_run
from tests.gpu_check.__main__ import GROUPS, ROOT, run_group
from tests.gpu_check.decoding import cache_bytes
from tests.gpu_check.results import Check, judged, markdown, measured, not_run, parse, write
from tests.gpu_check.scale import FULL
from tests.gpu_check.scale import QUICK as QUICK_SCALE

QUICK = ["--device", "cpu", "--quick"]


def run(*arguments: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.gpu_check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)


def read(folder: Path) -> dict[str, Check]:
    content = json.loads((folder / "gpu-cpu.json").read_text("utf-8"))
    return {check["what"]: Check(**check) for check in content["checks"]}


def test_decoding_on_a_cpu(tmp_path: Path) -> None:
    groups = ["ceilings", "decoder", "peers"]
    done = run(*QUICK, "--results", str(tmp_path), "--only", *groups)
    assert done.returncode == 0, done.stderr
    checks = read(tmp_path)
    assert checks["ceiling: copy"].figures["bytes_per_second"] > 1e7
    assert checks["decoder in float32, batch 2"].figures["tokens_per_second"] > 0
    assert checks["decoder in bfloat16, batch 2"].figures["share"] > 0
    assert checks["decoder in float16"].outcome == "not run"
    assert checks["VQ-GAN of rudalle"].outcome in ("measured", "not run")
    report = (tmp_path / "gpu-cpu.md").read_text("utf-8")
    assert all(f"| {what} |" in report for what in checks)
    assert "ceiling: copy" in done.stdout and str(tmp_path / "gpu-cpu.md") in done.stdout


@pytest.mark.slow
def test_everything_on_a_cpu(tmp_path: Path) -> None:
    done = run(*QUICK, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    checks = read(tmp_path)
    assert not [check for check in checks.values() if check.outcome == "failed"]
    assert checks["demo run, end to end"].outcome == "passed"
    assert checks["run of 2,000 images, idle share of the device"].figures["images"] == 8
    assert checks["batch of 3 in permuted company, bfloat16, equal bytes"].outcome == "passed"


def test_goldens_and_noise_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    checks = [*goldens.checks(cpu), *equality.noise(cpu)]
    assert len(checks) == 9
    assert {check.outcome for check in checks} == {"passed"}


def test_without_a_gpu_the_command_says_so() -> None:
    done = run()
    assert done.returncode == 2 and done.stdout == ""
    assert "gpu-check needs an NVIDIA GPU that PyTorch can use, and found none" in done.stderr
    assert "--device cpu --quick" in done.stderr and "Traceback" not in done.stderr


def test_a_group_that_ends_with_an_error_fails() -> None:
    (check,) = run_group("ceilings", ["--device", "cpu", "--unknown"], 60)
    assert check.outcome == "failed" and check.what == "ceilings: the rest"
    assert "exit code 2" in check.found and "--unknown" in check.found


def test_a_group_ends_when_the_time_is_over() -> None:
    (check,) = run_group("demo", QUICK, 0.2)
    assert (check.outcome, check.found) == ("not run", "the time was over")


GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("left", "per_image", "images"),
    [
        (480, 0.05, 2000),  # as on an H200
        (480, 0.2, 768),  # three whole batches
        (480, 0.8, 0),  # not one batch
        (100, 0.001, 0),
    ],
)
def test_the_long_run_has_as_many_images_as_there_is_time_for(
    left: float, per_image: float, images: int
) -> None:
    scale = dataclasses.replace(FULL, left=left)
    assert long_run.images_that_fit(2000, per_image, scale) == images


@pytest.mark.parametrize(
    ("per_image", "idle", "outcome", "found"),
    [
        (0.05, 0.031, "passed", "3.1% over 2,000 images"),
        (0.05, 0.08, "failed", "8.0% over 2,000 images"),
        (0.2, 0.08, "measured", "8.0% over 768 images; 2,000 would take 520 s"),
        (0.8, 0.0, "not run", "2,000 images would take 1900 s, and no batch fits"),
    ],
)
def test_the_idle_share_is_judged_if_all_images_were_drawn(
    per_image: float, idle: float, outcome: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_flow(path: str, output: Path) -> tuple[str, dict[str, Any]]:
        config = RunConfig.load(path, [f"output={output}"])
        prompts = len(Path(config.prompts.uri).read_text("utf-8").splitlines()) - 1
        assert config.prompts.shard_size == 32 and config.generate.batch_size == 256
        usage = {"idle_share": idle, "seconds": 90.0, "images_per_second": 22.2}
        return "", {"usage": usage, "totals": {"images": prompts * config.generate.images}}

    monkeypatch.setattr(long_run, "run_flow", run_flow)
    monkeypatch.setattr(long_run, "seconds_per_image", lambda *_: per_image)
    monkeypatch.setattr(long_run, "free_unused_memory", lambda: None)
    monkeypatch.setattr(long_run, "write_tiny_stack", lambda folder: folder)
    monkeypatch.setattr("rudalle_lib.config.precision._best_here", lambda _, names: {
        name: "bfloat16" for name in names
    })  # fmt: skip
    scale = dataclasses.replace(FULL, published_sizes=False)
    check, *_ = long_run.checks(GPU, scale)
    assert (check.outcome, check.found) == (outcome, found)


def test_a_long_run_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_run, "run_flow", lambda *_: ("exit code 1: no GPU", None))
    monkeypatch.setattr(long_run, "seconds_per_image", lambda *_: 0.001)
    monkeypatch.setattr(long_run, "write_tiny_stack", lambda folder: folder)
    (check,) = long_run.checks(torch.device("cpu"), QUICK_SCALE)
    assert (check.outcome, check.found) == ("failed", "exit code 1: no GPU")


@pytest.mark.slow
def test_networks_of_the_published_sizes_are_loaded(tmp_path: Path) -> None:
    """Those of the long run, with a decoder of two layers."""
    scale = dataclasses.replace(FULL, layers=2, hidden=256)
    long_run.write_published_sizes(tmp_path, scale)
    weights = WeightsConfig(folder=str(tmp_path), offline=True)
    assert load_decoder("demo-dalle", weights).model.config.image_length == 1024
    assert load_vqgan("demo-vqgan", weights).model.config.n_embed == 8192
    load_scorer("demo-ruclip", weights)
    load_upscaler("demo-realesrgan-x2", weights)


def test_what_differs_fails() -> None:
    assert goldens.compare("x", torch.ones(3), torch.ones(3)).outcome == "passed"
    assert goldens.compare("x", torch.ones(3), torch.ones(3) + 2e-4).outcome == "failed"
    tokens, numbers = torch.arange(6).view(2, 3), torch.zeros(2, 3)
    drawn = GeneratedTokens(tokens, numbers[:, 0], numbers[:, 0], numbers)
    next_bit = GeneratedTokens(tokens, numbers[:, 0], numbers[:, 0], numbers + 1e-45)
    assert equality._equal(drawn, drawn) and not equality._equal(drawn, next_bit)
    assert equality._words(drawn, next_bit) == "100.00% of tokens, 0.00% of log-probabilities"


def test_results_are_written_for_people_and_programs(tmp_path: Path) -> None:
    checks = [
        judged("a", False, "2 | 3\nlines", "1", error=2), measured("b", "5", rate=5.0),
        not_run("c", "no time"),
    ]  # fmt: skip
    assert [parse(check.line()) for check in checks] == checks
    assert parse("anything else") is None
    data, report = write(tmp_path, checks, "head", {"device": "NVIDIA H200 [x]"})
    assert data.name == "gpu-nvidia-h200--x-.json"
    assert json.loads(data.read_text("utf-8"))["checks"][0]["figures"] == {"error": 2}
    text = report.read_text("utf-8")
    assert text == markdown(checks, "head", {"device": "NVIDIA H200 [x]"})
    assert "1 failed, 1 measured, 1 not run" in text and "| a | **failed** | 2 / 3 lines |" in text


def test_the_floor_reads_what_a_step_sees() -> None:
    """Two layers of 4 x 4 tokens: a row layer sees at most 5 cells, a column layer at most 4."""
    from rudalle_lib.models.dalle import Dalle, DalleConfig

    model = Dalle(DalleConfig(2, 32, 2, 60, 20, 32, 4, 4))
    row, column = (1 + 2 + 3 + 4 + 12 * 5) / 16, (1 + 2 + 3 + 4) / 4
    expected = 3 * (row + column + 2 * 20 / 5) * 2 * 32 * 4
    assert cache_bytes(model, 3, 5) == pytest.approx(expected)


def test_the_makefile_runs_every_group() -> None:
    assert "python -m tests.gpu_check" in (ROOT / "Makefile").read_text("utf-8")
    assert list(GROUPS)[0] == "ceilings" and "equality" in GROUPS
