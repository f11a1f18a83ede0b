"""A whole fine-tuning in this process, for the command line, scripts and notebooks.

It checks the configuration, starts Prefect's server if none is named, runs the flow, and shows its
progress.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.console import SafeConsole

if TYPE_CHECKING:
    from rudalle_lib.config.fine_tune import FineTuneConfig
    from rudalle_lib.fine_tuning.record import FineTuneRecord

CHECKING = "Checking models, datasets and output"


def fine_tune_here(config: FineTuneConfig) -> tuple[FineTuneRecord, bool]:
    """Make the weights that a configuration describes, or go on where an earlier run has stopped.

    If nothing is left to do, no embedded server is started; an external server sees every run.

    Args:
        config: the fine-tuning.

    Returns:
        Its record, and whether it was finished before.

    Raises:
        RudalleError: see `flows.training.fine_tune`.
    """
    from flows.training.view import TrainingView

    console = SafeConsole(stderr=True)
    with TrainingView(console, config.name) as view:
        view.say(CHECKING.lower())
        from flows import embedded_server
        from flows.prefect_settings import (
            check_size,
            load_settings,
            set_up_prefect,
            translate_server_errors,
        )
        from rudalle_lib.fine_tuning.preflight import check_fine_tune
        from rudalle_lib.fine_tuning.record import read_record, settings_digest
        from rudalle_lib.storage.storage import Storage

        weights = check_fine_tune(config)
        embedded = set_up_prefect()
        check_size(config.model_dump(mode="json"))
        before = read_record(Storage(config.output))
        done = before is not None and before.settings == settings_digest(config, weights)
        if embedded and done and before is not None:
            return before, True
        load_settings()
        if embedded:
            embedded_server.launch()  # it starts while this process imports the rest
        from flows.training.fine_tune import checked_weights, fine_tune
        from tasks.training.events import listener

        viewing, checked = listener.set(view), checked_weights.set(weights)
        try:
            if embedded:
                embedded_server.start(view.say)
            with translate_server_errors():
                return fine_tune(config), done
        finally:
            listener.reset(viewing)
            checked_weights.reset(checked)
