"""The processes of a training on one machine: started together, stopped together.

    launch(work_of_a_process, (config, folder), processes=4)

calls the function in each of four new Python processes. They find each other through the variables
that `torchrun` sets (RANK, WORLD_SIZE and so on), so `trainer.train` in them is one training. The
function and its arguments must be picklable, which a function is by the name of its module.

A process passes `is_stopping` as `stop` to the trainer. It ends at once if the process that has
started it ends, however that happens.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rudalle_lib.errors import RudalleError, StoppedError, TrainingError
from rudalle_lib.storage.local_files import whole_file

POLL_SECONDS = 0.1
"""Seconds between two looks at the processes."""

ENDING_SECONDS = 10.0
"""Seconds in which the others must end after a process has failed; then they are killed."""

RETURNED_BYTES = 4 * 2**20
"""Tensors of at least this size go back to the system when they are freed. Otherwise glibc keeps up
to 32 MiB of each for later ones, which then do not fit: 0.3 GB more for two layers of Malevich."""

CODE = """
import sys
sys.path[:0] = {path!r}
from rudalle_lib.training.launch import run_process
run_process({folder!r}, {rank})
"""

RESUMES = "The training resumes from its last checkpoint when it is started again."

_stopping = threading.Event()


def is_stopping() -> bool:
    """Whether this process, one of `launch`, was asked to stop."""
    return _stopping.is_set()


def launch(
    call: Callable[..., object],
    arguments: Sequence[Any],
    processes: int,
    *,
    threads: int | None = None,
    stop: Callable[[], bool] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> None:
    """Call a function in several new processes, and wait until all have returned.

    Args:
        call: a function of a module; it should pass `is_stopping` as `stop` to the trainer.
        arguments: its arguments, the same in each process, picklable.
        processes: number of processes, at least 1. On GPUs, process i uses GPU i.
        threads: CPU threads of each process; None shares the cores evenly.
        stop: looked at while waiting; if it is true, the processes are asked to stop. With None
            Ctrl-C and SIGTERM ask them to, if this is the main thread.
        meanwhile: called while waiting and once at the end, for example to show figures.

    Raises:
        StoppedError: the processes were asked to stop, and have done so.
        TrainingError: a process has died or failed; the message says which and why.
        RudalleError: what the function has raised, if it is of this library.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="rudalle-training-")))
        (folder / "call").write_bytes(pickle.dumps((call, tuple(arguments))))
        asked = stop or stack.enter_context(_signals())
        shared = {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "MALLOC_MMAP_THRESHOLD_": os.environ.get("MALLOC_MMAP_THRESHOLD_", str(RETURNED_BYTES)),
            "OMP_NUM_THREADS": str(threads or max(1, (os.cpu_count() or 1) // processes)),
        }
        running = [_start(folder, rank, shared) for rank in range(processes)]
        stack.callback(_kill, running)
        _wait(running, asked, meanwhile or (lambda: None))
        _raise_failure(running, folder)


def _start(folder: Path, rank: int, shared: Mapping[str, str]) -> subprocess.Popen[bytes]:
    path = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", CODE.format(path=path, folder=str(folder), rank=rank)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
    )


def _wait(
    running: Sequence[subprocess.Popen[bytes]], asked: Callable[[], bool],
    meanwhile: Callable[[], object],
) -> None:  # fmt: skip
    """Wait until all processes have ended; after the first failure, not for long."""
    told, failed_at = False, None
    while None in (codes := [process.poll() for process in running]):
        if not told and asked():
            told = True
            for process in running:
                _tell(process)
        if failed_at is None and any(codes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > ENDING_SECONDS:
            break
        meanwhile()
        time.sleep(POLL_SECONDS)
    meanwhile()


def _tell(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to stop."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has ended
        process.stdin.write(b"stop\n")
        process.stdin.flush()


def _kill(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()


def _raise_failure(running: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Raise what explains best why processes have failed: a signal, or the first error of ours."""
    failed = [(rank, code) for rank, p in enumerate(running) if (code := p.poll())]
    errors: list[tuple[int, Exception]] = []
    for rank, code in failed:
        if code < 0:
            raise TrainingError(_death(rank, len(running), code))
        with contextlib.suppress(OSError, pickle.UnpicklingError, EOFError):
            errors.append((rank, pickle.loads((folder / f"error-{rank}").read_bytes())))
    ours = [error for _, error in errors if isinstance(error, RudalleError)]
    if ours:
        raise min(ours, key=lambda error: isinstance(error, StoppedError))
    for rank, other in errors:
        raise TrainingError(
            f"Process {rank} of {len(running)} has failed: {type(other).__name__}: {other}. "
            + RESUMES
        ) from other
    for rank, code in failed:
        raise TrainingError(
            f"Process {rank} of {len(running)} has ended with exit code {code}. {RESUMES}"
        )


def _death(rank: int, processes: int, code: int) -> str:
    name = signal.Signals(-code).name
    why = ", perhaps because the memory of this machine is full" if name == "SIGKILL" else ""
    return f"Process {rank} of {processes} was ended by {name}{why}. {RESUMES}"


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came, in the main thread; elsewhere never."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: came.set()) for number in numbers}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- in a process ------------------------------------------------------------------------------


def run_process(folder: str, rank: int) -> None:
    """Do the work of a process, and end it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the process that has started it decides
    threading.Thread(target=_listen, daemon=True).start()
    code = 0
    try:
        call, arguments = pickle.loads((Path(folder) / "call").read_bytes())
        call(*arguments)
    except Exception as error:
        code = 1
        if not isinstance(error, RudalleError):
            traceback.print_exc()
        _record(error, Path(folder) / f"error-{rank}")
    sys.stderr.flush()
    os._exit(code)  # threads of a broken process group may never end


def _record(error: Exception, path: Path) -> None:
    """Write an error for the process that has started this one."""
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # of a class that cannot be pickled
        content = pickle.dumps(TrainingError(f"{type(error).__name__}: {error}"))
    with whole_file(path) as fresh:
        fresh.write_bytes(content)


def _listen() -> None:
    """Wait to be asked to stop; end if the process that has started this one is gone."""
    while sys.stdin.buffer.readline():
        _stopping.set()
    os._exit(1)
