"""What a command leaves on a terminal, as a page for a screenshot."""

from __future__ import annotations

import html
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

COLUMNS = 100
"""Columns of the terminal."""

PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 28px 32px; background: #161616; color: #ededea; width: max-content; }}
pre {{ margin: 0; font: 15px/1.5 "DejaVu Sans Mono", monospace; }}
b {{ color: #9c9c95; font-weight: 400; }}
</style>{commands}"""

_TOKEN = re.compile(
    r"\x1b\[(\d*)A|\x1b\[2K|\x1b\[\?25[lh]|\r\n|\n|\r|(?:\x1b\[[\d;]*m|[^\x1b\r\n])+"
)


def run_in_terminal(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """Run a command of `rudalle-flows` in a terminal; returns its last screen, with colours."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, **variables, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *command], stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the terminal is closed
        pass
    finally:
        os.close(ours)
    process.wait()
    return last_screen(shown.decode())


def last_screen(text: str) -> str:
    """Apply the cursor movements of progress bars to a text."""
    lines = [""]
    for token in _TOKEN.finditer(text):
        part = token[0]
        if part in ("\n", "\r\n"):
            lines.append("")
        elif part == "\x1b[2K":
            lines[-1] = ""
        elif token[1] is not None:  # the cursor goes up to a line that is cleared next
            del lines[len(lines) - int(token[1] or 1) :]
        elif part != "\r" and not part.startswith("\x1b[?"):
            lines[-1] += part
    return "\n".join(lines).rstrip()


def terminal_page(commands: Mapping[str, str]) -> str:
    """Return a page with commands and what each has printed."""
    shown = []
    for command, printed in commands.items():
        console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(Text.from_ansi(printed), soft_wrap=True)
        output = console.export_html(inline_styles=True, code_format="{code}")
        shown.append(f"<pre><b>$ {html.escape(command)}</b>\n{output}</pre>")
    return PAGE.format(commands="<br>".join(shown))
