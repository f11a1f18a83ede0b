"""Several processes: they learn what one would, and their ends are told in a sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rudalle_lib.errors import PromptError, StoppedError, TrainingError
from rudalle_lib.training.checkpoints import read_learnt
from rudalle_lib.training.figures import Figures, Follower, read_figures
from rudalle_lib.training.launch import launch
from tests.support.ending_processes import end
from tests.support.tiny_training import learn


def figures_of(work: Path, name: str) -> list[float]:
    return [line[name] for line in read_figures(work) if name in line]


CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "uneven": {"batch_size": 5, "images_at_once": 2, "steps": 10},
    "fsdp": {"sharding": "fsdp", "average": 0.9, "steps": 20},
    "lora": {"sharding": "fsdp", "method": "lora", "images_at_once": 2, "steps": 10},
}
"""Changes of the settings; one start of two processes makes all of these trainings."""

TOLERANCES = {"ddp": 1e-4, "uneven": 1e-4, "fsdp": 1e-3, "lora": 1e-3}


def learn_cases(folder: Path) -> None:
    """Make a training of each case."""
    for name, changes in CASES.items():
        learn(folder / name, changes)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of all trainings by one process and by two."""
    folder = tmp_path_factory.mktemp("cases")
    launch(learn_cases, (folder / "two",), 2, threads=1)
    learn_cases(folder / "one")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does(cases: Path, name: str) -> None:
    for figure in ("loss", "held_out_loss"):
        one, two = (figures_of(cases / run / name, figure) for run in ("one", "two"))
        steps = CASES[name].get("steps", 50)
        assert len(one) == (steps if figure == "loss" else steps // 10)
        assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < TOLERANCES[name]
    a, b = (read_learnt(cases / run / name / "learnt.pt") for run in ("one", "two"))
    assert all((a[tensor] - b[tensor]).abs().max() < 0.01 for tensor in a)


def test_processes_stop_and_another_number_goes_on(cases: Path, tmp_path: Path) -> None:
    work = tmp_path / "stopped"
    follower = Follower(work)
    seen: list[tuple[int, Figures]] = []
    with pytest.raises(StoppedError, match="same work folder resumes"):
        launch(
            learn, (work, CASES["fsdp"]), 2, threads=1, stop=lambda: len(seen) > 5,
            meanwhile=lambda: seen.extend(follower.new()),
        )  # fmt: skip
    assert 5 < len(seen) < 20
    assert [step for step, _ in seen] == list(range(len(seen)))
    learn(work, CASES["fsdp"])
    losses, expected = (figures_of(run, "loss") for run in (work, cases / "one" / "fsdp"))
    assert losses == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ("kill", TrainingError, "Process 1 of 2 was ended by SIGKILL, perhaps because the memory"),
        ("ours", PromptError, "the table is empty"),
        ("theirs", TrainingError, "Process 1 of 2 has failed: ZeroDivisionError: by nothing"),
        ("exit", TrainingError, "Process 1 of 2 has ended with exit code 3"),
    ],
)
def test_a_dead_process_is_told_in_a_sentence(
    how: str, error: type[Exception], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rudalle_lib.training.launch.ENDING_SECONDS", 0.0)
    with pytest.raises(error, match=sentence):
        launch(end, (how,), 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_ask_all_processes_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    polls: list[int] = []

    def interrupt() -> None:
        polls.append(1)
        if len(polls) == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(StoppedError):
        launch(end, ("wait",), 2, meanwhile=interrupt)
    assert signal.getsignal(number) == before


@pytest.mark.chaos
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "from rudalle_lib.training.launch import launch\n"
        "from tests.support.ending_processes import wait\n"
        f"launch(wait, ({str(note)!r},), 1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not (note.exists() and note.read_text().endswith("\n")):
        assert parent.poll() is None
        time.sleep(0.02)
    child = psutil.Process(int(note.read_text()))
    parent.kill()
    parent.wait()
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)
