"""The command `top`: many runs at a glance, from their outputs alone."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import AsJson
from flows.exits import FAILED, leaving_quietly, translate_exit
from rudalle_lib.escaping import safe_line
from rudalle_lib.humanize import counted, duration, reasons

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from rudalle_lib.checks.watch import Look, Worker

MAX_CONCURRENT = 16
"""Outputs that are read at the same time."""

WIDE = 120
"""Columns from which a terminal has room for the outputs beside the names of runs."""

GOOD = {"running": "green", "finished": "bright_black"}
"""States without a fault, and their colours; all others are red."""

SELECTION = frozenset({"not_in_best_k", "below_threshold", "same_image", "duplicate"})
"""Reasons for rejection that are part of every run; all others are worth a look."""


def top(
    urls: Annotated[
        list[str], typer.Argument(metavar="OUTPUT...", help="Outputs of runs: folders or URLs.")
    ],
    every: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="Seconds between two looks.")
    ] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch runs: progress, speed, idle share, time left and failures.

    Reads only the outputs, so it works for runs on other machines. Ctrl-C ends it. With --json it
    prints a line of JSON per look. With --once, and without a terminal, it looks once, and exits
    with 1 if a run is stalled or unfinished, or cannot be read.
    """
    with translate_exit(), leaving_quietly():
        from concurrent.futures import ThreadPoolExecutor

        from flows.console import SafeConsole
        from rudalle_lib.checks.watch import Watcher

        console = SafeConsole()
        watchers = [Watcher(url) for url in urls]
        with ThreadPoolExecutor(min(len(watchers), MAX_CONCURRENT)) as pool:

            def look() -> list[Look]:
                return list(pool.map(Watcher.look, watchers))

            if once or not (console.is_terminal or as_json):
                found = look()
                if as_json:
                    print_line(found)
                else:
                    console.print(looks_table(found, console.width))
                if any(one.state not in GOOD for one in found):
                    raise typer.Exit(FAILED)
            elif as_json:
                while True:
                    print_line(look())
                    time.sleep(every)
            else:
                from rich.live import Live

                with console.status("Reading the outputs"):
                    table = looks_table(look(), console.width)
                with Live(table, console=console, auto_refresh=False) as live:
                    while True:
                        time.sleep(every)
                        live.update(looks_table(look(), console.width), refresh=True)


def print_line(looks: Sequence[Look]) -> None:
    """Print a line of JSON: a list with an object per output."""
    typer.echo(json.dumps([one.as_json() for one in looks]))


def looks_table(looks: Sequence[Look], width: int) -> Group:
    """Return a table for a terminal of so many columns: a row per output, and one per worker.

    Below it are sentences about outputs that cannot be read.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("run", overflow="fold", min_width=8)
    table.add_column("state", no_wrap=True)
    table.add_column("shards", no_wrap=True)
    for name in ("", "published", "images/s", "idle", "left"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("failures", overflow="fold", style="red", min_width=10)
    if wide:
        table.add_column("output", overflow="fold", style="bright_black")
    for one in looks:
        table.add_row(
            Text(safe_line(one.name or one.output)),
            Text(one.state, style=GOOD.get(one.state, "red")),
            *_figures(one, one.seconds_left),
            Text(safe_line(failures(one))),
            *([Text(safe_line(one.output))] if wide else []),
        )
        for worker in one.workers:
            table.add_row(
                Text(f"  shards {worker.shards}"),
                Text(worker.state, style=GOOD.get(worker.state, "red")),
                *_figures(worker),
                Text(safe_line(_silent(worker.holder) if worker.state == "stalled" else "")),
                *([Text(safe_line(worker.holder))] if wide else []),
            )
    problems = [Text(safe_line(one.problem), style="red") for one in looks if one.problem]
    return Group(table, *problems)


def failures(one: Look) -> str:
    """Say what is wrong with a run that can be read; empty if nothing is."""
    found = {
        reason: count for reason, count in one.totals.rejected.items() if reason not in SELECTION
    }
    parts = [
        f"{counted(one.missing, 'shard')} missing" if one.state == "unfinished" else "",
        _silent(one.holder) if one.state == "stalled" and not one.workers else "",
        reasons(found),
    ]
    return "; ".join(filter(None, parts))


def _silent(holder: str | None) -> str:
    return f"{holder} has not renewed its lease"


def _figures(one: Look | Worker, seconds_left: float | None = None) -> list[RenderableType]:
    from rich.progress_bar import ProgressBar

    if one.state == "unreadable":
        return [""] * 6
    speed = one.usage.images_per_second if one.usage else None
    idle = one.usage.idle_share if one.usage else None
    return [
        ProgressBar(
            total=one.planned, completed=one.totals.shards, width=12,
            complete_style="red", finished_style="white",
        ),
        f"{one.totals.shards:,}/{one.planned:,}",
        f"{one.totals.kept:,}",
        "" if speed is None else f"{speed:,.1f}",
        "" if idle is None else f"{idle:.0%}",
        "" if seconds_left is None else duration(seconds_left),
    ]  # fmt: skip
