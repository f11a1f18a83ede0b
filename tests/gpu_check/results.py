"""Results of checks, and where they are written: a table, JSON, and a report in Markdown."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

Outcome = Literal["passed", "failed", "measured", "not run"]

COLOURS: Mapping[Outcome, str] = {
    "passed": "green",
    "failed": "bold red",
    "measured": "cyan",
    "not run": "yellow",
}

PREFIX = "CHECK "
"""What the line of a result starts with on the standard output of a group."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        what: what was checked or measured, the same text in every run.
        outcome: whether it passed; "measured" has no bar, "not run" says why in `found`.
        found: the result in words.
        expected: the bar in words; empty if there is none.
        figures: the numbers behind it.
    """

    what: str
    outcome: Outcome
    found: str
    expected: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """One line of text, which `parse` reads."""
        return PREFIX + json.dumps(asdict(self))


def parse(line: str) -> Check | None:
    """Read a line of `Check.line`; None if it is something else."""
    return Check(**json.loads(line.removeprefix(PREFIX))) if line.startswith(PREFIX) else None


def judged(what: str, passes: bool, found: str, expected: str, **figures: Any) -> Check:
    """A check with a bar."""
    return Check(what, "passed" if passes else "failed", found, expected, figures)


def measured(what: str, found: str, **figures: Any) -> Check:
    """A measurement without a bar."""
    return Check(what, "measured", found, "", figures)


def not_run(what: str, why: str) -> Check:
    """A check that cannot be made here."""
    return Check(what, "not run", why)


def describe_machine(device: torch.device) -> dict[str, str]:
    """What a reader of the results must know of the machine."""
    facts = {
        "device": device_name(device),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": _version("triton"),
        "rudalle-flows": _version("rudalle-flows"),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        facts["memory"] = f"{found.total_memory / 1e9:.0f} GB"
        facts["compute capability"] = f"{found.major}.{found.minor}"
    return facts


def device_name(device: torch.device) -> str:
    """The name of a GPU, or that it is the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"


def show(checks: Sequence[Check], title: str) -> None:
    """Print the table of all results."""
    table = Table(title=title, title_justify="left")
    for column in ("check", "result", "found", "expected"):
        table.add_column(column, overflow="fold")
    for check in checks:
        colour = COLOURS[check.outcome]
        table.add_row(
            check.what, f"[{colour}]{check.outcome}[/]", _plain(check.found), check.expected
        )
    Console(file=sys.stdout).print(table)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def markdown(checks: Sequence[Check], head: str, machine: Mapping[str, str]) -> str:
    """The report that can be attached to an issue."""
    rows = [
        f"| {check.what} | {_bold(check.outcome)} | {_cell(check.found)} | {check.expected} |"
        for check in checks
    ]
    facts = [f"| {name} | {_cell(value)} |" for name, value in machine.items()]
    counts = ", ".join(
        f"{count} {outcome}"
        for outcome in COLOURS
        if (count := sum(check.outcome == outcome for check in checks))
    )
    return "\n".join(
        [
            "# rudalle-flows on a GPU", "", head, "", f"**{counts}**", "",
            "| check | result | found | expected |", "| --- | --- | --- | --- |", *rows, "",
            "| machine | |", "| --- | --- |", *facts, "",
        ]
    )  # fmt: skip


def _bold(outcome: Outcome) -> str:
    return "**failed**" if outcome == "failed" else outcome


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def write(
    folder: Path, checks: Sequence[Check], head: str, machine: Mapping[str, str]
) -> tuple[Path, Path]:
    """Write `gpu-<device>.json` and `gpu-<device>.md`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in machine["device"].lower())
    content = {"measured": head, "machine": machine, "checks": [asdict(check) for check in checks]}
    data, report = (folder / f"gpu-{name}.{suffix}" for suffix in ("json", "md"))
    data.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    report.write_text(markdown(checks, head, machine), "utf-8")
    return data, report
