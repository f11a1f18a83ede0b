"""No text of strangers controls the terminal, and every terminal and pipe can show the output."""

from __future__ import annotations

import ast
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.options import PACKAGED
from flows.exits import translate_exit
from flows.terminal import SafeGroup
from rudalle_lib.errors import StorageError

ROOT = PACKAGED.parent
HOSTILE = "x\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e\u2066\ud800é …"
"""Escape sequences, a bell, a carriage return, directions, a lone surrogate, and plain letters."""

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

probe = typer.Typer(cls=SafeGroup, rich_markup_mode=None, pretty_exceptions_enable=False)
"""Commands that print a hostile text in every way in which something is printed."""


@probe.command()
def echo(text: str) -> None:
    typer.echo(text)
    typer.echo(text, err=True)


@probe.command()
def plain_print(text: str) -> None:
    print(text)
    sys.stdout.writelines([text, "\n"])
    sys.stderr.write(text)


@probe.command()
def error(text: str) -> None:
    with translate_exit():
        raise StorageError(f"There is no {text}.")


@probe.command()
def unexpected(text: str) -> None:
    raise ValueError(text)


@probe.command()
def log(text: str) -> None:
    import logging
    import warnings

    logging.getLogger(__name__).warning("%s", text)
    warnings.simplefilter("always")
    warnings.warn(text, stacklevel=1)


@probe.command()
def table(text: str) -> None:
    from flows.cli.tables import print_pairs

    print_pairs(text, [(text, text), ("two", "a\nb")])


@probe.command()
def spinner(text: str) -> None:
    from flows.console import SafeConsole

    console = SafeConsole(stderr=True)
    with console.status(text):
        console.print(text)
        print(text)


@probe.command()
def progress(text: str) -> None:
    from flows.console import SafeConsole
    from flows.views import make_view
    from tasks.runtime.events import Noticed, ShardFailed, Step

    with make_view(SafeConsole(stderr=True)) as view:
        view(Noticed(text))
        view(Step("generate", 0, 1, 2))
        view(ShardFailed(1, text))


COMMANDS = ("echo", "plain-print", "error", "table", "spinner", "progress")
CALL = "import sys; from test_terminal import HOSTILE, probe; probe([sys.argv[1], HOSTILE])"


def start(
    command: list[str], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent)))}
    everything = {**os.environ, **paths, **(environment or {})}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=everything, capture_output=True, timeout=120
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_hostile_text_is_shown_as_escapes(command: str) -> None:
    done = CliRunner().invoke(probe, [command, HOSTILE])
    assert CONTROL.search(done.stdout + done.stderr) is None
    assert "owned" in done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_traceback_and_every_encoding_are_safe(encoding: str) -> None:
    variables = {"PYTHONIOENCODING": encoding}
    for command in ("unexpected", "log", "table"):
        done = start(["-c", CALL, command], variables)
        text = (done.stdout + done.stderr).decode(encoding)
        assert CONTROL.search(text) is None and "owned" in text
        assert "UnicodeEncodeError" not in text


@pytest.mark.parametrize("terminal", ["xterm-256color", "dumb"])
@pytest.mark.parametrize("command", ["table", "spinner", "progress"])
def test_in_a_terminal_only_our_own_colours_and_movements_are_escape_sequences(
    command: str, terminal: str
) -> None:
    shown = in_terminal(["-c", CALL, command], {"TERM": terminal, "COLUMNS": "200"})
    ours = re.sub(r"\x1b\[(?:[0-9;]*[mAK]|\?25[lh])|\r", "", shown)
    assert CONTROL.search(ours) is None and "x\\x1b]0;owned" in ours
    assert (shown == ours.replace("\n", "\r\n") or "\x1b" in shown) and "\x1b]" not in shown
    if terminal == "dumb":
        assert "\x1b[" not in re.sub(r"\x1b\[[0-9;]*m", "", shown)


def in_terminal(command: list[str], environment: Mapping[str, str]) -> str:
    """What a process writes to a terminal."""
    ours, theirs = pty.openpty()
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent)))}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **paths, **environment},
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:  # the process has closed its end
        pass
    process.wait(120)
    os.close(ours)
    return shown.decode()


@given(st.text(st.sampled_from("ab\x1b[m\r\x07\x9b\u202e\n ")))
def test_nothing_but_a_progress_bar_starts_a_line_again(text: str) -> None:
    shown = CliRunner().invoke(probe, ["echo", "--", f"text {text}"]).stdout
    assert CONTROL.search(shown) is None


# --- every command, in every terminal ----------------------------------------------------------

OUTPUTS = (["models"], ["--help"], ["status", "nowhere"], ["status"])


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"COLUMNS": "20", "NO_COLOR": "1"},
        {"COLUMNS": "1", "TERM": "dumb"},
    ],
    ids=["ascii", "latin-1", "C", "narrow", "dumb"],
)
def test_every_terminal_can_show_every_output(environment: dict[str, str]) -> None:
    for command in OUTPUTS:
        done = start(["-m", "flows.cli", *command], environment)
        assert b"Traceback" not in done.stderr and b"UnicodeEncode" not in done.stderr
        assert done.returncode in (0, 2) and done.stdout + done.stderr
        assert b"\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [["models"], ["--help"]])
def test_a_reader_that_goes_away_changes_nothing(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("models", 0), ("status nowhere", 2)])
def test_closed_streams_are_no_error(command: str, code: int, closed: str) -> None:
    shell = f"{sys.executable} -m flows.cli {command} {closed}"
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr


def test_a_full_disk_is_one_sentence_for_results_and_nothing_for_progress() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "flows.cli"]
        done = subprocess.run(
            [*command, "models"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
        lost = subprocess.run([*command, "status", "nowhere"], cwd=ROOT, stderr=full)
    assert (done.returncode, done.stderr) == (
        2,
        "rudalle-flows: Cannot write the output of this command: No space left on device.\n",
    )
    assert lost.returncode == 2


def test_the_streams_are_restored_and_have_no_way_around_them() -> None:
    before = sys.stdout, sys.stderr

    @probe.command()
    def look() -> None:
        assert not hasattr(sys.stdout, "buffer") and sys.stdout.encoding

    assert CliRunner().invoke(probe, ["look"]).exit_code == 0
    assert (sys.stdout, sys.stderr) == before
    assert type(typer.main.get_command(app)) is SafeGroup


@pytest.mark.parametrize("command", ["echo", "plain-print", "error", "unexpected"])
def test_passwords_and_signatures_are_not_printed(command: str) -> None:
    text = "https://me:secret@host/a.csv?X-Amz-Signature=secret, hf_secret"
    code = "from tests.flows.test_terminal import probe; probe()"
    done = subprocess.run(
        [sys.executable, "-c", code, command, text], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "HF_TOKEN": "hf_secret", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    printed = done.stdout + done.stderr
    assert "https://host/a.csv" in printed and "secret" not in printed
    assert ("Traceback" in printed) is (command == "unexpected")


def test_no_other_console_is_made() -> None:
    """Every console is a `SafeConsole`, and nothing writes to the process's own streams."""
    for path in [*(ROOT / "flows").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        tree = ast.parse(path.read_text("utf-8"))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {ast.unparse(function) for function in calls}
        assert not names & {"Console", "rich.print", "sys.__stdout__.write"}, path
