"""Train: let the network learn, in processes of its own, and show how it gets on."""

from __future__ import annotations

import threading

from prefect import task
from prefect.logging import get_run_logger

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.fine_tuning import process
from rudalle_lib.fine_tuning.losses import describe, is_measurement
from rudalle_lib.fine_tuning.preflight import process_count
from rudalle_lib.fine_tuning.record import TrainedWeights, read_trained
from rudalle_lib.fine_tuning.work_folder import WorkFolder
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.figures import Follower, read_figures
from rudalle_lib.training.launch import launch
from tasks.runtime.options import OPTIONS
from tasks.runtime.stopping import stop_requested
from tasks.training.artifacts import TrainingArtifacts
from tasks.training.events import Stepped, emit


@task(name="train", **OPTIONS)
def train(config: FineTuneConfig, version: str) -> TrainedWeights:
    """Train, or go on where an earlier run has stopped.

    Args:
        config: the fine-tuning, whose data is encoded.
        version: of the training.

    Raises:
        StoppedError: the run must stop; a checkpoint is written.
        TrainingError: the training cannot go on.
    """
    work = WorkFolder(Storage(config.output), version)
    work.fetch()
    work.begin()
    if not work.is_trained:
        follow = _Follow(config, work)
        stop = stop_requested.get() or threading.Event()
        try:
            launch(
                process.run,
                (config, process.Places(str(work.root), str(work.training))),
                process_count(config),
                threads=config.runtime.threads,
                stop=stop.is_set,
                meanwhile=follow,
            )
        finally:
            work.publish_figures()
            work.send()
    return read_trained(work)


class _Follow:
    """Reads the figures that a training writes, and passes them on."""

    def __init__(self, config: FineTuneConfig, work: WorkFolder) -> None:
        self._config, self._work = config, work
        self._follower = Follower(work.training)
        self._logger = get_run_logger()
        self._artifacts = TrainingArtifacts(config, work.root)

    def __call__(self) -> None:
        """Pass new figures on, and show each measurement."""
        steps, measured = self._config.training.steps, False
        for step, figures in self._follower.new():
            emit(Stepped(step + 1, steps, figures))
            if is_measurement(figures):
                measured = True
                self._logger.info(
                    "step %s of %s: %s", f"{step + 1:,}", f"{steps:,}", describe(figures)
                )
        if measured:
            self._work.publish_figures()
            self._artifacts.publish(read_figures(self._work.training))
            self._work.send()
