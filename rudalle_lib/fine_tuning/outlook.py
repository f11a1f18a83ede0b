"""What a fine-tuning would do, without doing it."""

from __future__ import annotations

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.fine_tuning.preflight import check_fine_tune, process_count, public_export_folder
from rudalle_lib.fine_tuning.record import read_record, settings_digest
from rudalle_lib.fine_tuning.work_folder import CHECKPOINTS
from rudalle_lib.humanize import counted
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.manifest import read_manifest


def look_ahead(config: FineTuneConfig) -> list[tuple[str, str]]:
    """Check a fine-tuning, and describe what it would do, in rows of label and text.

    Raises:
        RudalleError: see `check_fine_tune`; nothing is written.
    """
    weights = check_fine_tune(config, output=False)
    storage = Storage(config.output)
    training, data = config.training, read_manifest(storage)
    record = read_record(storage)
    finished = record is not None and record.settings == settings_digest(config, weights)
    encoded = f"{counted(data.rows, 'image')} encoded" if data else "nothing is encoded yet"
    seen = training.steps * training.batch_size
    epochs = f", {seen / data.rows:,.1f} times each image" if data and data.rows else ""
    return [
        ("state", "finished; there is nothing to do" if finished else _state(storage)),
        ("trains", f"the {config.trains} {config.base_model}, method {training.method}"),
        *[(f"weights {name}", digest) for name, digest in weights.items()],
        *[("data", public_url(source.uri)) for source in config.data],
        ("so far", encoded),
        ("steps", f"{training.steps:,} of {counted(training.batch_size, 'image')}{epochs}"),
        ("processes", str(process_count(config))),
        ("new weights", public_export_folder(config)),
    ]


def _state(storage: Storage) -> str:
    begun = storage.entries(CHECKPOINTS)
    return "goes on where it has stopped, if its settings are the same" if begun else "new"
