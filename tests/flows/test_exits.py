"""Expected errors become a message on stderr and an exit code; unexpected ones pass through."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import typer

from flows import exits
from flows import watchdog as watching
from flows.cli.options import PACKAGED
from flows.exits import BAD_INPUT, FAILED, INTERRUPTED, TERMINATED, Terminated, translate_exit
from flows.watchdog import Ending, Watchdog
from rudalle_lib.errors import ConfigError, LeaseLostError, ShardError, TrainingError


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ShardError("1 of 2 shards failed."), FAILED, "1 of 2 shards failed."),
        (LeaseLostError("The lease is lost."), FAILED, "The lease is lost."),
        (TrainingError("Process 0 has died."), FAILED, "Process 0 has died."),
        (ConfigError("No such setting."), BAD_INPUT, "No such setting."),
        (MemoryError(), FAILED, "Out of memory. Finished work is kept; run the same command"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), FAILED, "The disk of /x/y is full; free"),
        (OSError(errno.EDQUOT, "Quota exceeded"), FAILED, "The disk of /"),
        (RuntimeError("can't start new thread"), FAILED, "This process cannot get the memory or"),
        (ImportError("libtorch.so: failed to map segment from shared object"), FAILED, "This pro"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), FAILED, "This process cannot get the"),
        (Terminated(signal.SIGHUP), 129, "The terminal was closed. Finished work is kept; run the"),
        (KeyboardInterrupt(), INTERRUPTED, "Interrupted. Finished work is kept; run the same"),
    ],
)
def test_expected_errors_have_a_message_and_a_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as raised, translate_exit():
        raise error
    assert raised.value.exit_code == code
    assert capsys.readouterr().err.startswith(f"rudalle-flows: {message}")


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, INTERRUPTED, "Interrupted."),
        (signal.SIGTERM, TERMINATED, "Terminated."),
        (signal.SIGHUP, 129, "The terminal was closed."),
    ],
)
def test_a_signal_ends_the_command_and_the_old_handlers_are_restored(
    number: signal.Signals, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(typer.Exit) as raised, translate_exit():
        os.kill(os.getpid(), number)
        signal.pause()
    assert raised.value.exit_code == code
    assert f"{message} Finished work is kept" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in numbers] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # like nohup
    try:
        with translate_exit():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_while_the_work_is_being_stopped_ends_like_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watchdog = Watchdog()
    watchdog._ending = Ending(TERMINATED, "Terminated.")
    monkeypatch.setattr(watching, "watchdog", watchdog)
    with pytest.raises(typer.Exit) as raised, translate_exit():
        raise ConnectionError("the server of Prefect is gone, too")
    assert raised.value.exit_code == TERMINATED
    assert capsys.readouterr().err == "rudalle-flows: Terminated.\n"
    watchdog._reader.close()
    watchdog._writer.close()


def test_too_little_address_space_is_an_error_before_a_library_crashes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 30, 1 << 30))
    with pytest.raises(typer.Exit) as raised, translate_exit():
        pytest.fail("nothing may be started")
    assert raised.value.exit_code == BAD_INPUT
    assert "may use 1.0 GiB of address space (ulimit -v); at least 2 GiB" in capsys.readouterr().err


@pytest.mark.parametrize("gigabytes", [0.3, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("command", ["run", "plan", "preview", "app"])
def test_with_little_address_space_every_command_is_one_sentence(
    command: str, gigabytes: float
) -> None:
    limit = int(gigabytes * 2**30)
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", command, "demo"],
        cwd=PACKAGED.parent,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == BAD_INPUT
    assert len(done.stderr.splitlines()) == 1 and "(ulimit -v)" in done.stderr


def test_too_few_threads_are_an_error_that_names_the_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) > 3:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(typer.Exit) as raised, translate_exit():
        pytest.fail("nothing may be started")
    assert raised.value.exit_code == BAD_INPUT
    error = capsys.readouterr().err
    assert f"not even {exits.MIN_THREADS} threads can be started" in error and "ulimit -u" in error


def run_in_shell(before: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command after others of a shell."""
    command = f"{before}; exec {sys.executable} -m flows.cli plan demo"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGED.parent)}
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        ("mkdir x; cd x; rmdir ../x", "The working directory cannot be used (No such file or"),
        ("ulimit -n 40", "This process may open 40 files (ulimit -n); at least 64 are needed."),
    ],
)
def test_a_process_without_what_libraries_need_is_one_sentence(
    before: str, sentence: str, tmp_path: Path
) -> None:
    done = run_in_shell(before, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"rudalle-flows: {sentence}")


def test_unexpected_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), translate_exit():
        _ = 1 / 0
