"""Views of a run: bars in a terminal, plain lines in a pipe, a cell in a notebook."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from flows.progress import RunProgress
from flows.views import make_view
from flows.views.bars import BarView
from flows.views.lines import LineView
from flows.views.notebook import NotebookView
from rudalle_lib.pipeline.stages import STAGE_NAMES
from tasks.runtime.events import Event, Planned, Step
from tests.support.run_events import EVENTS, PLAN


def show(kind: type[BarView] | type[LineView], *events: Event) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=kind is BarView, width=120)
    with kind(console, RunProgress(STAGE_NAMES, lambda: 0.0)) as view:
        for event in events:
            view(event)
    return screen.getvalue()


def test_plain_lines_show_the_plan_every_shard_and_the_error_of_a_failed_one() -> None:
    assert show(LineView, *EVENTS).splitlines() == [
        "4 prompts in 2 shards, 2 new; 2 shards to do",
        "3 rows of the prompt table rejected: 2 empty_prompt, 1 duplicate",
        "shard 00000: 3 of 8 images kept, 5 rejected, 1.2 s; 1 of 2 shards",
        "shard 00001 failed: decode: [bold]no[/bold]",
    ]


def test_a_long_stage_prints_a_line_every_half_minute() -> None:
    now = [0.0]
    steps = [Step("generate", 0, done, 4) for done in (1, 2, 3)]
    screen = io.StringIO()
    progress = RunProgress(["generate"], lambda: now[0])
    with LineView(Console(file=screen, width=120), progress) as view:
        view(Planned(replace(PLAN, rejected={}), 1, {0: 2}))
        for now[0], step in zip((10.0, 35.0, 40.0), steps, strict=True):
            view(step)
    assert screen.getvalue().splitlines()[1:] == ["shard 00000: generate 50%, about 50 s left"]


def test_bars_show_every_stage_and_count_images() -> None:
    shown = show(BarView, *EVENTS)
    assert all(stage in shown for stage in STAGE_NAMES)
    assert "3 of 8 images kept, 5 rejected" in shown
    assert "decode: [bold]no[/bold]" in shown


def test_nothing_to_do_shows_no_bars() -> None:
    shown = show(BarView, Planned(PLAN, 0))
    assert "nothing to do" in shown and "translate" not in shown


@pytest.mark.parametrize(
    ("terminal", "notebook", "kind"),
    [(True, False, BarView), (False, False, LineView), (False, True, NotebookView)],
)
def test_the_view_is_that_of_the_place(terminal: bool, notebook: bool, kind: type) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    display = (lambda html: None) if notebook else None
    assert isinstance(make_view(console, {"cutout"}, display), kind)
