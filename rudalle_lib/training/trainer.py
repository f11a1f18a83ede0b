"""The trainer: one loop for all networks, on one device or many, that can be killed at any time.

    training = TrainingConfig(steps=500)
    trained = train(DecoderTask(model, examples, training), training, work=Path("runs/mine"))
    decoder = trained_decoder(load_decoder(...).model, training, trained.weights)

A `Task` says what learns, from what, and by which loss. The loop does the rest: bfloat16, parts of
a batch one after the other, AdamW or other optimizers, the schedule of the learning rate, clipping,
the average of the weights, the held-out loss, stopping early, checkpoints and the log.

**The work folder** belongs to one training. The same folder again resumes it, and what is learnt is
then, bit for bit, what an undisturbed training learns. It has

- `checkpoint.pt` and `checkpoint.previous.pt` (`training.checkpoints`);
- `figures.jsonl`: a line per step, which a program can follow (`training.figures`);
- `best-STEP.pt`: the weights with the lowest held-out loss, with `evaluation.patience`;
- `learnt.pt` and `trained.json`: the result, `Trained`.

**Several processes** run this same function, each for itself; `training.launch` starts them. A step
learns from the same rows whatever their number is, and its gradient is that of the whole batch but
for rounding. With `sharding: fsdp` torch's FSDP2 spreads parameters, gradients and optimizers over
the processes; otherwise each has the whole network (DDP).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rudalle_lib.config.fine_tune import EvaluationConfig, TrainingConfig
from rudalle_lib.errors import StoppedError, TrainingError
from rudalle_lib.training.checkpoints import (
    State,
    learnt_tensors,
    load_learnt,
    load_optimizer,
    optimizer_state,
    read_checkpoint,
    read_learnt,
    spread_like,
    whole,
    write_atomically,
    write_checkpoint,
)
from rudalle_lib.training.figures import Figures, FiguresLog
from rudalle_lib.training.processes import Processes
from rudalle_lib.training.run import WeightAverage
from rudalle_lib.training.task import Task

SEED_STRIDE = 1_000_003
"""Step s of a training with seed n computes with torch's generator at n * SEED_STRIDE + s."""

OnFigures = Callable[[int, Figures], None]
"""Gets the number of a step and its figures."""


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        weights: file with the tensors that have learnt (`read_learnt`): the best, if the training
            may stop early, else the last; averaged ones, if `average` is set. Frozen weights are
            not in it (`decoder.trained_decoder`).
        steps: steps that were made.
        weights_step: steps after which the network had these weights.
        seconds: of training, including those before it was resumed.
        stopped_early: whether the held-out loss had stopped falling.
        held_out_loss: the held-out loss of the weights, if it was measured.
    """

    weights: Path
    steps: int
    weights_step: int
    seconds: float
    stopped_early: bool = False
    held_out_loss: float | None = None


def train(
    task: Task,
    training: TrainingConfig,
    *,
    work: Path,
    seed: int = 0,
    evaluation: EvaluationConfig | None = None,
    device: str = "auto",
    on_figures: OnFigures | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train a network in place, or resume.

    Args:
        task: the network, its data and its loss. Without FSDP its network has the weights of the
            result afterwards.
        training: how it learns; objectives read the settings that are about them.
        work: folder for log and checkpoints, which belongs to this training; made if missing.
        seed: seed of torch's generator, for example for dropout. The order of the data is up to
            the task.
        evaluation: when the held-out rows of the task are measured; None never measures.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        on_figures: is called with the figures of each step, by the first process.
        stop: looked at after each step; if it is true in any process, all write a checkpoint and
            stop.

    Raises:
        StoppedError: `stop` was true. The same work folder again resumes.
        TrainingError: the loss or the gradient is not finite.
        SettingsError: the settings do not fit the task or the number of processes.
        WeightsError: the work folder is of another training.
    """
    work.mkdir(parents=True, exist_ok=True)
    return _Loop(task, training, work, seed, evaluation, device).run(
        on_figures or (lambda step, figures: None), stop or (lambda: False)
    )


class _Loop:
    """The state of a training."""

    def __init__(
        self, task: Task, training: TrainingConfig, work: Path, seed: int,
        evaluation: EvaluationConfig | None, device: str,
    ) -> None:  # fmt: skip
        self.task, self.training, self.work, self.seed = task, training, work, seed
        self.evaluation = evaluation
        self.processes = Processes(task, training, device)
        self.shares = self.processes.shares(training.batch_size)
        self.optimizers = task.optimizers(training)
        self.rates = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.average = WeightAverage(task.model, training.average) if training.average else None
        self.step, self.seconds_before, self.started = 0, 0.0, time.monotonic()
        self.saved = self.started
        self.best: tuple[float, int] | None = None
        self.misses = 0
        self.log = FiguresLog(work) if self.processes.is_first else None

    def run(self, on_figures: OnFigures, stop: Callable[[], bool]) -> Trained:
        """Make all steps that are left; write and return the result."""
        if state := read_checkpoint(self.work):
            self._restore(state)
        self.processes.wait()
        if self.log:
            self.log.cut(self.step)
        steps = self.training.steps
        while self.step < steps and not self._is_patience_over():
            figures, stopping, due = self._learn(stop)
            self.step += 1
            if self.evaluation and (self.step % self.evaluation.every == 0 or self.step == steps):
                figures |= self._measure(self.evaluation)
            if self.log:
                self.log.write(self.step - 1, figures)
                on_figures(self.step - 1, figures)
            ended = self.step == steps or self._is_patience_over()
            if stopping or due or ended:
                self._save()
            if stopping and not ended:
                raise StoppedError(
                    f"The training was asked to stop after {self.step} of {steps} steps; the same "
                    "work folder resumes it."
                )
        return self._finish()

    # --- one step -------------------------------------------------------------------------------

    def _learn(self, stop: Callable[[], bool]) -> tuple[Figures, bool, bool]:
        """Make a step. Returns its figures, whether to stop, and whether a checkpoint is due."""
        torch.manual_seed(self.seed * SEED_STRIDE + self.step + self.processes.index * 2**40)
        factor = self.task.schedule(self.step, self.training)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        sums: dict[str, Tensor] = {}
        for number, share in enumerate(self.shares):
            batch = self.task.batch(self.step, share.rows)
            weight = share.counted / self.training.batch_size
            with self.processes.gradients(number == len(self.shares) - 1):
                losses = self.processes.losses(batch, self.step)
                # Gradients are averaged over processes; this makes it a sum over all rows.
                (losses["loss"] * (weight * self.processes.count)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().double() * weight
        due = time.monotonic() - self.saved >= self.training.checkpoint_seconds
        control = [float(stop()), float(due and self.processes.is_first)]
        *values, stopping, due_sum = self.processes.sums([*sums.values(), *control])
        figures: Figures = dict(zip(sums, values, strict=True))
        figures["gradient_norm"] = self._clip()
        _check(figures, self.step)
        for optimizer in self.optimizers:
            optimizer.step()
        self.task.after_step(self.step)
        if self.average:
            self.average.update(self.task.model, self.step)
        figures["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        figures["seconds"] = self._seconds()
        return figures, stopping > 0, due_sum > 0

    def _clip(self) -> float:
        """Clip the gradient; return its norm before."""
        total = 0.0
        for parameters in self.task.clipped():
            norm = nn.utils.clip_grad_norm_(parameters, self.training.clip_norm)
            total += float(norm.full_tensor() if isinstance(norm, DTensor) else norm) ** 2
        return math.sqrt(total)

    # --- measuring ------------------------------------------------------------------------------

    @torch.no_grad()
    def _measure(self, evaluation: EvaluationConfig) -> Figures:
        """Measure the weights that would be exported, and remember the best."""
        figures: Figures = {}
        with self._exported_weights():
            self.task.model.eval()
            if total := min(evaluation.images, self.task.held_out_rows):
                figures = self._held_out_losses(total)
                _check(figures, self.step)
            if self.processes.is_first or self.processes.is_spread:
                figures |= self.task.evaluate(self.step)
            self.processes.wait()
            self.task.model.train()
            if "held_out_loss" in figures:
                self._compare(figures["held_out_loss"], evaluation.patience)
        return figures

    def _held_out_losses(self, total: int) -> Figures:
        sums: dict[str, Tensor] = {}
        for share in self.processes.shares(total):
            batch = self.task.held_out_batch(share.rows)
            losses = self.processes.losses(batch, self.step)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.double() * (share.counted / total)
        values = self.processes.sums(list(sums.values()))
        return {f"held_out_{name}": value for name, value in zip(sums, values, strict=True)}

    def _compare(self, loss: float, patience: int | None) -> None:
        """Keep the weights if their held-out loss is the lowest, or if the last ones count."""
        if patience and self.best and loss >= self.best[0]:
            self.misses += 1
            return
        self.best, self.misses = (loss, self.step), 0
        if patience:
            self._write_learnt(self._best_file(self.step))

    def _is_patience_over(self) -> bool:
        patience = self.evaluation.patience if self.evaluation else None
        return patience is not None and self.misses >= patience

    @contextmanager
    def _exported_weights(self) -> Iterator[None]:
        """Put the averaged weights, if there are any, into the network for a while."""
        if self.average:
            self.average.swap(self.task.model)
        try:
            yield
        finally:
            if self.average:
                self.average.swap(self.task.model)

    # --- files ----------------------------------------------------------------------------------

    def _best_file(self, step: int) -> Path:
        return self.work / f"best-{step:08d}.pt"

    def _save(self) -> None:
        """Write a checkpoint."""
        average = self.average.state_dict() if self.average else {}
        state: State = {
            "step": self.step,
            "seconds": self._seconds(),
            "best": self.best,
            "misses": self.misses,
            "model": {n: whole(t) for n, t in learnt_tensors(self.task.model).items()},
            "average": {name: whole(value) for name, value in average.items()},
            "optimizers": [optimizer_state(optimizer) for optimizer in self.optimizers],
        }
        if self.processes.is_first:
            previous = read_checkpoint(self.work)
            write_checkpoint(self.work, state)
            needed = {self._best_file(s["best"][1]) for s in (state, previous) if s and s["best"]}
            for path in set(self.work.glob("best-*.pt")) - needed:
                path.unlink()
        self.processes.wait()
        self.saved = time.monotonic()

    def _restore(self, state: State) -> None:
        source = f"The checkpoint in {self.work}"
        load_learnt(self.task.model, state["model"], source)
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, stored)
        if self.average:
            self.average.load_state_dict(
                {n: spread_like(state["average"][n], v) for n, v in self.average.values.items()}
            )
        self.step, self.seconds_before = state["step"], state["seconds"]
        self.best = tuple(state["best"]) if state["best"] else None
        self.misses = state["misses"]

    def _finish(self) -> Trained:
        """Put the weights of the result into the network, and write them."""
        if self.average:
            self.average.swap(self.task.model)
        loss, step = self.best or (None, self.step)
        if self.best and self.evaluation and self.evaluation.patience:
            path = self._best_file(step)
            load_learnt(self.task.model, read_learnt(path), str(path))
        weights = self.work / "learnt.pt"
        self._write_learnt(weights)
        result = Trained(weights, self.step, step, self._seconds(), self._is_patience_over(), loss)
        if self.processes.is_first:
            text = json.dumps({**asdict(result), "weights": weights.name}, indent=2)
            (self.work / "trained.json").write_text(text + "\n")
        self.task.model.eval()
        self.processes.wait()
        return result

    def _write_learnt(self, path: Path) -> None:
        tensors = {n: whole(t) for n, t in learnt_tensors(self.task.model).items()}
        if self.processes.is_first:
            write_atomically(tensors, path)
        self.processes.wait()

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


def _check(figures: Figures, step: int) -> None:
    """Refuse to go on with a figure that is not a finite number."""
    if not all(map(math.isfinite, figures.values())):
        found = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        raise TrainingError(
            f"Step {step}: expected finite numbers, found {found}. Try a lower learning rate or a "
            "longer warm-up; the work folder has the last checkpoint."
        )
