"""Fine-tune a network on data of one's own: encode, train, evaluate, export.

Everything is in the output: encoded shards and checkpoints, so that a run that was killed goes on,
and at last `fine_tune.json`, after which nothing is left to do.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Annotated, Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from flows import embedded_server
from flows.generate_dataset import name_run
from flows.watchdog import allow_time, install_in_flow_run
from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.form import FINE_TUNE, ShortForm
from rudalle_lib.dataset.lease import hold
from rudalle_lib.fine_tuning.preflight import check_fine_tune
from rudalle_lib.fine_tuning.record import (
    FineTuneRecord,
    read_record,
    settings_digest,
    training_version,
)
from rudalle_lib.runtime.devices import resolve_devices
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.manifest import EncodedData
from tasks.runtime.events import notice
from tasks.runtime.stopping import stop_at_the_end
from tasks.training.encode import encode
from tasks.training.export import export
from tasks.training.train import train

CHECKPOINT_SECONDS = 120.0
"""How long a step and the checkpoint after it may take, after a signal."""

checked_weights: ContextVar[Mapping[str, str] | None] = ContextVar(
    "checked_training_weights", default=None
)
"""Digests of the weights by name, if the caller has run `check_fine_tune` already."""

embedded_server.use_detached_server()  # before the first run starts Prefect's embedded server


@flow(name="fine-tune", flow_run_name=name_run)
def fine_tune(config: Annotated[FineTuneConfig, ShortForm(FINE_TUNE)]) -> FineTuneRecord:
    """Make the weights that a configuration describes, or go on where an earlier run has stopped.

    Raises:
        ConfigError, DataError, WeightsError, StorageError: an input cannot be used; nothing has
            been written.
        LeaseError: another run is writing to the output.
        TrainingError: the training cannot go on.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    weights = dict(checked_weights.get() or check_fine_tune(config))
    storage = Storage(config.output)
    finished = finished_record(config, weights)
    if finished is not None:
        get_run_logger().info(
            "This fine-tuning is finished; its weights are in %s", finished.folder
        )
        return finished
    install_in_flow_run()
    allow_time(CHECKPOINT_SECONDS)
    stop = threading.Event()
    threads: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner()
    with (
        hold(storage, config.runtime.lease_seconds, notice, stop.set) as lease,
        threads as runner,
        stop_at_the_end(stop),
    ):
        data = encode_all(config, runner, lease.mark.term)
        version = training_version(config, weights, data)
        trained = runner.submit(train, {"config": config, "version": version}).result()
        parameters = {
            "trained": trained, "version": version, "weights": weights, "started": started,
        }  # fmt: skip
        record: FineTuneRecord = runner.submit(
            export, {"config": config, "lease": lease.mark, **parameters}
        ).result()
        return record


def finished_record(config: FineTuneConfig, weights: Mapping[str, str]) -> FineTuneRecord | None:
    """The record of a fine-tuning that is finished, with these settings; None if it is not."""
    record = read_record(Storage(config.output))
    is_same = record is not None and record.settings == settings_digest(config, weights)
    return record if is_same else None


def encode_all(config: FineTuneConfig, runner: ThreadPoolTaskRunner[Any], term: int) -> EncodedData:
    """Encode all datasets: each device encodes a share of the shards, then all are listed."""
    devices = len(resolve_devices(config.runtime.devices))
    if devices > 1:
        shares = [
            runner.submit(encode, {
                "config": config, "part": f"on GPU {device}", "device": device, "of": devices,
                "term": term,
            })
            for device in range(devices)
        ]  # fmt: skip
        for share in shares:
            share.result()
    whole = {"config": config, "part": "all datasets", "term": term}
    data: EncodedData = runner.submit(encode, whole).result()
    return data
