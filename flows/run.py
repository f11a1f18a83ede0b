"""A whole run in this process, for the command line, scripts and notebooks.

It checks the configuration, starts Prefect's server if none is named, runs the flow, and shows its
progress: bars in a terminal or a notebook, plain lines otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flows.console import SafeConsole, notebook_display
from flows.watchdog import RESUME_HINT
from rudalle_lib.api.finished_run import FinishedRun
from rudalle_lib.errors import LeaseLostError, RudalleError, ShardError

if TYPE_CHECKING:
    from rudalle_lib.config.run import RunConfig
    from rudalle_lib.schema.records import RunManifest

CHECKING = "Checking models, prompts and output"


def make_dataset(config: RunConfig, source: str | None = None) -> FinishedRun:
    """Make the dataset that a configuration describes, or the part of it that is missing.

    If nothing is left to do, no embedded server is started; an external server sees every run.

    Args:
        config: the configuration of the run.
        source: a dataset whose image tokens are rendered again; otherwise images are drawn.

    Returns:
        The run: its images and rejects as tables, and a page about it in notebooks.

    Raises:
        RudalleError: when the run cannot start; nothing has been started.
        ShardError: when some shards failed, or the run stopped after the first shard was started.
    """
    manifest = _make(config, source)
    assert manifest is not None
    return FinishedRun(config.output, manifest)


def make_shards(config: RunConfig, shards: str) -> RunManifest | None:
    """Make some shards of a dataset, while other runs make others.

    Args:
        config: the configuration of all runs of the output.
        shards: as `flows.generate_shards` takes them.

    Returns:
        The manifest of the run; None if other runs still work on other shards.

    Raises:
        RudalleError, ShardError: as `make_dataset`.
    """
    return _make(config, None, shards)


def _make(config: RunConfig, source: str | None, shards: str | None = None) -> RunManifest | None:
    console, display = SafeConsole(stderr=True), notebook_display()
    with _checking(config.name, console, display):
        from flows import embedded_server
        from flows.prefect_settings import (
            check_size,
            load_settings,
            set_up_prefect,
            translate_server_errors,
        )
        from rudalle_lib.checks.preflight import check_divisible, check_rerender, check_run
        from rudalle_lib.dataset.range_lease import check_planned, parse_shards
        from rudalle_lib.pipeline.diff import finished_run
        from rudalle_lib.storage.storage import Storage

        wanted = None if shards is None else parse_shards(shards)
        if shards is not None:
            check_divisible(config)
        weights = check_rerender(Storage(source), config) if source else check_run(config)
        embedded = set_up_prefect()
        check_size(config.model_dump(mode="json"))
        finished = finished_run(config, weights) if embedded and not source else None
        if finished is not None:
            check_planned(wanted, finished.shards_planned)
            return finished
        load_settings()
        if embedded:
            embedded_server.launch()  # it starts while this process imports the rest
        from flows.generate_dataset import checked_weights, generate_dataset, rerender_dataset
        from flows.views import make_view
        from rudalle_lib.pipeline.stages import skipped_stages
        from tasks.runtime.events import Event, Noticed, Planned, listener

    is_started = False

    def show(event: Event) -> None:
        nonlocal is_started
        is_started = is_started or (isinstance(event, Planned) and event.todo > 0)
        view(event)

    with make_view(console, skipped_stages(config), display) as view:
        viewing, checked = listener.set(show), checked_weights.set(weights)
        try:
            if embedded:
                embedded_server.start(lambda message: view(Noticed(message)))
            with translate_server_errors():
                if shards is not None:
                    from flows.generate_shards import generate_shards

                    return generate_shards(config, shards)
                return rerender_dataset(config, source) if source else generate_dataset(config)
        except (ShardError, LeaseLostError):
            raise
        except RudalleError as error:
            if is_started:  # shards may be finished, so this is not an invalid input
                raise ShardError(f"{error} {RESUME_HINT}") from error
            raise
        finally:
            listener.reset(viewing)
            checked_weights.reset(checked)


@contextmanager
def _checking(
    name: str, console: SafeConsole, display: Callable[[str], None] | None
) -> Iterator[None]:
    """Say at once that the run is being checked, which may take a while."""
    if display is not None:
        display(CHECKING)
        yield
    elif console.is_terminal:
        with console.status(CHECKING):
            yield
    else:  # it shows no spinner
        console.print(f"{name}: {CHECKING[0].lower()}{CHECKING[1:]}")
        yield
