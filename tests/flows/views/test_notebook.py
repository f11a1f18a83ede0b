"""The progress of a run in a notebook's cell: HTML that replaces itself."""

from __future__ import annotations

import html
import re

from flows.progress import RunProgress
from flows.views.notebook import NotebookView
from rudalle_lib.pipeline.stages import STAGE_NAMES
from tasks.runtime.events import Noticed, Planned, Step
from tests.support.run_events import EVENTS, PLAN


def text_of(page: str) -> str:
    """The text of HTML, without the blanks at the ends of lines."""
    lines = html.unescape(re.sub(r"<[^>]+>", "", page)).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def test_the_cell_shows_messages_and_a_bar_for_every_stage() -> None:
    shown: list[str] = []
    with NotebookView(shown.append, RunProgress(STAGE_NAMES, lambda: 0.0)) as view:
        assert text_of(shown[-1]) == "Starting Prefect"
        for event in EVENTS:
            view(event)
    text = text_of(shown[-1])
    assert "Starting" not in text
    assert text.startswith("4 prompts in 2 shards, 2 new; 2 shards to do\n")
    assert "shard 00001 failed: decode: [bold]no[/bold]\n" in text
    assert re.search(r"^publish +━+ 100% 3 of 8 images kept, 5 rejected$", text, re.MULTILINE)
    assert [stage for stage in STAGE_NAMES if f"\n{stage} " not in text] == []


def test_steps_in_quick_succession_update_the_cell_once() -> None:
    now, shown = [0.0], list[str]()
    with NotebookView(shown.append, RunProgress(["generate"], lambda: now[0])) as view:
        view(Planned(PLAN, 1, {0: 4}))
        before = len(shown)
        for now[0] in (0.1, 0.2, 0.3, 0.4):
            view(Step("generate", 0, 1, 4))
        assert len(shown) == before + 1
        view(Step("generate", 0, 4, 4))
    assert " 100%" in text_of(shown[-1]), "the last step is shown at the end"


def test_text_of_strangers_is_no_markup() -> None:
    shown: list[str] = []
    with NotebookView(shown.append, RunProgress(["generate"], lambda: 0.0)) as view:
        view(Planned(PLAN, 0))
        view(Noticed("<img src=x onerror=alert(1)>\x1b[2J"))
    assert "<img" not in shown[-1] and "\x1b" not in shown[-1]
    assert "<img src=x onerror=alert(1)>\\x1b[2J" in text_of(shown[-1])
