"""The trainer: parts add up to the batch, a killed training ends like an undisturbed one."""

from __future__ import annotations

import json
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import EvaluationConfig
from rudalle_lib.errors import StoppedError, TrainingError, WeightsError
from rudalle_lib.training.checkpoints import load_learnt, read_learnt
from rudalle_lib.training.decoder import DecoderTask
from rudalle_lib.training.figures import read_figures
from rudalle_lib.training.task import Batch, Task
from rudalle_lib.training.trainer import Trained, train
from tests.support.fork_server import CONTEXT, preload
from tests.support.tiny_training import learn, settings, tiny_decoder, tiny_examples

preload("tests.support.tiny_training")


def figure(work: Path, name: str) -> list[float]:
    """The values of a figure, of all steps that have it."""
    return [line[name] for line in read_figures(work) if name in line]


def test_the_network_learns_and_has_the_weights_of_the_result(tmp_path: Path) -> None:
    training = settings(average=0.9, checkpoint_seconds=0)
    task = DecoderTask(tiny_decoder(), tiny_examples(), training)
    seen: list[int] = []
    trained = train(
        task, training, work=tmp_path, device="cpu",
        on_figures=lambda step, figures: seen.append(step),
    )  # fmt: skip
    losses = figure(tmp_path, "image")
    assert losses[-1] < 0.7 * losses[0]
    assert seen == list(range(50))
    assert trained.steps == 50 and not trained.stopped_early
    assert json.loads((tmp_path / "trained.json").read_text())["steps"] == 50
    other = tiny_decoder(seed=9)
    load_learnt(other, read_learnt(trained.weights), "learnt.pt")
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(m.parameters() for m in (other, task.model)), strict=True)
    )


@pytest.mark.parametrize("at_once", [1, 4, 5])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(tmp_path: Path, at_once: int) -> None:
    for name, parts in (("whole", None), ("parts", at_once)):
        learn(tmp_path / name, {"steps": 10, "images_at_once": parts})
    for name in ("loss", "gradient_norm", "held_out_loss"):
        whole, added = (figure(tmp_path / run, name) for run in ("whole", "parts"))
        assert added == pytest.approx(whole, rel=1e-5)


def learn_until(work: Path, last: int | None) -> Trained:
    """Train with dropout, and stop after a step."""
    training = settings(average=0.9, steps=30, method="lora", lora={"dropout": 0.3})
    task = DecoderTask(tiny_decoder(), tiny_examples(), training, held_out=tiny_examples(5))
    steps: list[int] = []
    return train(
        task, training, work=work, device="cpu", seed=4, evaluation=EvaluationConfig(every=7),
        on_figures=lambda step, figures: steps.append(step),
        stop=lambda: last is not None and last in steps,
    )  # fmt: skip


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = learn_until(tmp_path / "whole", None)
    for step in (3, 8, 20):
        with pytest.raises(StoppedError, match="same work folder resumes"):
            learn_until(tmp_path / "stopped", step)
    stopped = learn_until(tmp_path / "stopped", None)
    for name in ("step", "loss", "gradient_norm", "held_out_loss"):
        assert figure(tmp_path / "stopped", name) == figure(tmp_path / "whole", name)
    one, other = read_learnt(whole.weights), read_learnt(stopped.weights)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.chaos
def test_a_training_killed_five_times_has_the_losses_of_an_undisturbed_one(tmp_path: Path) -> None:
    changes = {"checkpoint_seconds": 0, "average": 0.9}
    measured = {"every": 10, "patience": 3}

    def start(work: Path) -> BaseProcess:
        process = CONTEXT.Process(target=learn, args=(work, changes, measured))
        process.start()
        return process

    whole, work = start(tmp_path / "whole"), tmp_path / "killed"
    for step in sorted(random.Random(1).sample(range(2, 49), 5)):
        process = start(work)
        while process.is_alive() and len(read_figures(work)) < step:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
    for process in (whole, start(work)):
        process.join()
        assert process.exitcode == 0
    for name in ("step", "loss", "text", "image", "gradient_norm", "held_out_loss"):
        assert figure(work, name) == figure(tmp_path / "whole", name)
    one, other = (read_learnt(tmp_path / run / "learnt.pt") for run in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


class Line(Task):
    """A number that learns to be as large as it can; the held-out loss is lowest at `best`."""

    model: nn.Linear

    def __init__(self, best: float = 3.0) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.best, self.held_out_rows = best, 1

    def batch(self, step: int, rows: range) -> Batch:
        return {"x": torch.ones(len(rows), 1)}

    def held_out_batch(self, rows: range) -> Batch:
        return {"x": torch.ones(len(rows), 1), "held_out": torch.ones(len(rows))}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        value = model(batch["x"]).mean()
        return {"loss": (value - self.best).abs() if "held_out" in batch else -value}

    def optimizers(self, training: Any) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.model.parameters(), lr=1.0)]

    def schedule(self, step: int, training: Any) -> float:
        return 1.0


def train_line(best: float, steps: int, work: Path, **measured: int) -> tuple[Trained, float]:
    """Train a line; return the result and the weight."""
    task, evaluation = Line(best), EvaluationConfig.model_validate(measured)
    training = settings(steps=steps, clip_norm=9.0)
    trained = train(task, training, work=work, evaluation=evaluation, device="cpu")
    return trained, task.model.weight.item()


def test_early_stop_keeps_the_best_weights(tmp_path: Path) -> None:
    result, weight = train_line(7.0, 100, tmp_path, every=2, patience=3)
    assert result.stopped_early
    assert (result.steps, result.weights_step, result.held_out_loss) == (12, 6, 1.0)
    assert weight == read_learnt(result.weights)["weight"].item() == 6.0
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-00000006.pt"]
    again, weight = train_line(7.0, 100, tmp_path, every=2, patience=3)
    assert again.steps == 12 and weight == 6.0


def test_without_patience_the_last_weights_are_kept(tmp_path: Path) -> None:
    result, weight = train_line(3.0, 9, tmp_path, every=4)
    assert (result.steps, result.weights_step, result.held_out_loss) == (9, 9, 6.0)
    assert weight == 9.0


class Broken(Line):
    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        return {"loss": model(batch["x"]).mean() * (float("nan") if step == 3 else 1.0)}


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Step 3: expected finite numbers, found loss nan"):
        train(Broken(), settings(), work=tmp_path, device="cpu")


def test_a_work_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    train(Line(), settings(steps=1), work=tmp_path, device="cpu")
    with pytest.raises(WeightsError, match="is of another training"):
        learn(tmp_path, {})
