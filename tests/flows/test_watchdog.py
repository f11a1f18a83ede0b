"""The watchdog ends a process in time, whatever its main thread does; each case is a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flows.cli.options import PACKAGED
from flows.watchdog import ENDINGS, REPEAT

START = """
import contextlib, hashlib, os, signal, subprocess, sys, threading, time
from flows.watchdog import Ending, Watchdog
def ready():
    print("ready", flush=True)
def in_c():  # a call that returns to Python after minutes; it releases the interpreter
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)
"""
"""What every program begins with."""

SOON = 8.0
"""Seconds that a busy machine may need to end a process at once."""


@contextmanager
def program(body: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a process group of its own; yields when it has printed "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", START + textwrap.dedent(body)],
        cwd=PACKAGED.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        yield process
    finally:
        process.kill()
        process.communicate()


def send(process: subprocess.Popen[str], *numbers: int) -> None:
    """Signal the group like a terminal, with pauses in which a person presses keys again."""
    for position, number in enumerate(numbers):
        time.sleep(2 * REPEAT if position else 0)
        os.killpg(process.pid, number)


def end_of(process: subprocess.Popen[str], seconds: float = SOON) -> tuple[int, str]:
    """Wait for the end; returns the exit code and stderr."""
    _, stderr = process.communicate(timeout=seconds)
    return process.returncode, stderr


@pytest.mark.parametrize("number", ENDINGS)
def test_a_main_thread_in_c_ends_after_the_grace_period(number: signal.Signals) -> None:
    with program("Watchdog(grace=0.5).install(); ready(); in_c()") as process:
        send(process, number)
        code, message = ENDINGS[number]
        assert end_of(process) == (code, f"rudalle-flows: {message}\n")


@pytest.mark.parametrize(
    "work",
    [
        "in_c()",
        "threading.Thread(target=in_c).start(); threading.Event().wait()",  # joined at the end
        "while True:\n    try: time.sleep(60)\n    except BaseException: pass",  # swallows it
        "threading.Lock().acquire(); time.sleep(60)",
        "os.read(os.pipe()[0], 1)",
        "subprocess.run(['sleep', '60'], start_new_session=True)",
    ],
)
@pytest.mark.parametrize("numbers", [(signal.SIGINT,) * 2, (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_ends_the_process_at_once(work: str, numbers: tuple[int, int]) -> None:
    start = "Watchdog(grace=600).install()\nsignal.signal(signal.SIGINT, lambda *_: None)\n"
    start += "signal.signal(signal.SIGTERM, lambda *_: None)\nready()\n"
    with program(start + work) as process:
        send(process, *numbers)
        ending = ENDINGS[signal.Signals(numbers[0])]
        assert end_of(process) == (ending.code, f"rudalle-flows: {ending.message}\n")


def test_before_and_after_a_command_one_signal_ends_the_process() -> None:
    with program("Watchdog(grace=600).install(); ready(); time.sleep(60)") as process:
        send(process, signal.SIGTERM)
        assert end_of(process)[0] == 143


def test_two_signals_at_the_same_time_count_as_one() -> None:
    body = """
    Watchdog(grace=600).install()
    signal.signal(signal.SIGTERM, lambda *_: None)
    ready()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        time.sleep(0.1)
    os._exit(7)
    """
    with program(body) as process:
        os.kill(process.pid, signal.SIGTERM)  # as `timeout` does it
        os.killpg(process.pid, signal.SIGTERM)
        assert end_of(process) == (7, "")


def test_a_signal_that_the_process_sends_to_itself_is_not_a_second_one() -> None:
    body = """
    watchdog = Watchdog(grace=600)
    watchdog.install()
    signal.signal(signal.SIGTERM, lambda *_: None)
    ready()
    time.sleep(0.5)  # until the signal of the test
    time.sleep(1)
    signal.signal(signal.SIGTERM, lambda *_: watchdog.own_signal())
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: None)
    print("again", flush=True)
    in_c()
    """
    with program(body) as process:
        send(process, signal.SIGTERM)
        assert process.stdout is not None and process.stdout.readline() == "again\n"
        time.sleep(1)
        assert process.poll() is None
        send(process, signal.SIGTERM)
        assert end_of(process)[0] == 143


def test_a_process_for_one_flow_run_has_time_after_any_number_of_signals() -> None:
    body = """
    Watchdog(grace=3, repeat_ends=False).install()
    signal.signal(signal.SIGTERM, lambda *_: None)
    ready()
    in_c()
    """
    with program(body) as process:
        started = time.monotonic()
        send(process, *(signal.SIGTERM,) * 3)
        assert end_of(process)[0] == 143
        assert time.monotonic() - started > 2


def test_nobody_needs_to_read_the_sentence() -> None:
    body = """
    Watchdog(grace=0.5).install()
    os.set_blocking(2, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(2, b"x" * 1000)
    os.set_blocking(2, True)
    ready()
    in_c()
    """
    with program(body) as process:
        send(process, signal.SIGTERM)
        assert process.wait(SOON) == 143


def test_a_forked_child_does_not_end_its_parent() -> None:
    body = """
    Watchdog(grace=600).install()
    child = os.fork()
    if child == 0:
        time.sleep(60)
    for _ in range(3):
        os.kill(child, signal.SIGTERM)
        time.sleep(0.5)
    ready()
    sys.exit(os.waitpid(child, 0)[1])  # the signal that ended the child
    """
    with program(body) as process:
        assert end_of(process) == (signal.SIGTERM, "")


def test_ignored_signals_stay_ignored() -> None:
    body = """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # like nohup
    Watchdog(grace=0.1).install()
    ready()
    time.sleep(2)
    os._exit(3)
    """
    with program(body) as process:
        send(process, signal.SIGHUP, signal.SIGHUP)
        assert end_of(process) == (3, "")


def test_children_are_asked_to_end_and_cleanups_are_called() -> None:
    body = """
    watchdog = Watchdog(grace=0.1)
    watchdog.install()
    watchdog.cleanups += [lambda: 1 / 0, lambda: os.write(1, b"cleaned up\\n")]
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    ready()
    print(child.pid, flush=True)
    in_c()
    """
    with program(body) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        send(process, signal.SIGTERM)
        stdout, _ = process.communicate(timeout=SOON)
        assert stdout == "cleaned up\n"
        deadline = time.monotonic() + SOON
        while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not os.path.exists(f"/proc/{child}")


def test_a_program_can_end_itself_with_a_sentence_of_its_own() -> None:
    body = """
    watchdog = Watchdog(grace=0.5)
    watchdog.install()
    ready()
    signal.signal(signal.SIGTERM, lambda *_: None)
    watchdog.end_soon(Ending(1, "The server is gone."))
    in_c()
    """
    with program(body) as process:
        assert end_of(process) == (1, "rudalle-flows: The server is gone.\n")


def test_importing_the_command_line_leaves_signals_alone() -> None:
    code = "import signal; a = [signal.getsignal(n) for n in (1, 2, 15)]; import flows.cli; "
    code += "import flows.watchdog as w; assert w.watchdog is None; "
    code += "assert a == [signal.getsignal(n) for n in (1, 2, 15)]"
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGED.parent, check=True, timeout=120)
