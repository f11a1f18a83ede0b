"""Export: write the new weights with their card, and the record that says all is done."""

from __future__ import annotations

from dataclasses import replace

from prefect import task
from prefect.logging import get_run_logger

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.dataset.lease import check
from rudalle_lib.dataset.lease_files import LeaseMark
from rudalle_lib.errors import WeightsError
from rudalle_lib.fine_tuning.export import (
    file_digests,
    write_card,
    write_weights,
)
from rudalle_lib.fine_tuning.model_card import render_card
from rudalle_lib.fine_tuning.networks import learnt_network
from rudalle_lib.fine_tuning.preflight import export_folder
from rudalle_lib.fine_tuning.record import (
    FineTuneRecord,
    TrainedWeights,
    make_record,
    write_record,
)
from rudalle_lib.fine_tuning.work_folder import WorkFolder
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.checkpoints import CURRENT, PREVIOUS
from tasks.runtime.options import OPTIONS
from tasks.runtime.stopping import stop_if_requested
from tasks.training.events import Exporting, emit

NOT_NEEDED = (CURRENT, PREVIOUS, "best-*.pt")
"""Files of a finished training that are deleted; the weights that were learnt stay."""


@task(name="export", **OPTIONS)
def export(
    config: FineTuneConfig,
    trained: TrainedWeights,
    version: str,
    weights: dict[str, str],
    started: str,
    lease: LeaseMark,
) -> FineTuneRecord:
    """Write the new weights, their card and the record.

    Args:
        config: the fine-tuning.
        trained: the finished training.
        version: of the training.
        weights: digests of the weights that it used, by name.
        started: when the run started, ISO 8601.
        lease: mark of the lease on the output.

    Raises:
        LeaseError: another run has taken over the output.
    """
    emit(Exporting())
    storage = Storage(config.output)
    work = WorkFolder(storage, version)
    folder = export_folder(config, work.root)
    try:
        write_weights(learnt_network(config, work.learnt), config, folder)
        record = make_record(config, trained, weights, started, work)
        write_card(folder, render_card(record, config))
    except OSError as error:
        raise WeightsError(f"cannot write {error.filename or folder}: {error.strerror}") from error
    record = replace(record, files=file_digests(folder))
    stop_if_requested()
    check(storage, lease)
    work.send(*([folder] if folder.is_relative_to(work.root) else []))
    write_record(storage, record)
    work.discard(NOT_NEEDED)
    get_run_logger().info("the weights are in %s", record.folder)
    return record
