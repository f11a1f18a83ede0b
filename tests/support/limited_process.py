"""Call a function in a process with bounds on memory and time, and measure what it took.

Processes are forked from a server that has imported torch and what the modules of tests import, so
a call costs milliseconds. A bomb that is not defused ends its own process, not the machine.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rudalle_lib.errors import RudalleError
from tests.support.fork_server import CONTEXT, preload

MEGABYTE = 2**20

preload("torch", "pytest", "hypothesis", "hypothesis.strategies", "PIL.Image")
preload("rudalle_lib.images.codecs", "rudalle_lib.prompts.plan", "rudalle_lib.weights.loading")


@dataclass(frozen=True)
class Outcome:
    """What a call returned or raised.

    Attributes:
        value: what it returned; None if it raised.
        error: the message of one of our errors; None if it returned.
        seconds: processor time of the call.
        megabytes: growth of the largest resident memory.
    """

    value: Any
    error: str | None
    seconds: float
    megabytes: float


def call_limited(
    function: Callable[..., Any], *arguments: Any, megabytes: int = 1000, seconds: int = 30
) -> Outcome:
    """Call a function of a module in a process of its own.

    Args:
        function: returns a small value, or raises a `RudalleError`.
        arguments: of the function.
        megabytes: virtual memory that the call may add.
        seconds: processor time that it may take.

    Raises:
        AssertionError: it raised anything else, or was killed at a limit.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(
        target=_child, args=(sender, function, arguments, megabytes, seconds), daemon=True
    )
    process.start()
    sender.close()
    found = receiver.recv() if receiver.poll(10 * seconds) else None
    if process.is_alive() and found is None:
        process.kill()
    process.join()
    assert found is not None, f"no answer within {10 * seconds} s"
    outcome: Outcome | str = found
    assert isinstance(outcome, Outcome), outcome
    return outcome


def _child(
    sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...],
    megabytes: int, seconds: int,
) -> None:  # fmt: skip
    signal.signal(signal.SIGXCPU, _too_slow)
    used = _virtual_memory()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * MEGABYTE,) * 2)
    cpu = int(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
    before, started = _peak(), time.process_time()
    value = error = None
    try:
        value = function(*arguments)
    except RudalleError as raised:
        error = str(raised)
    except BaseException as raised:
        sender.send(
            f"{function.__name__}{arguments} raised {type(raised).__name__}: {raised}"[:2000]
        )
        return
    sender.send(Outcome(value, error, time.process_time() - started, _peak() - before))


def _too_slow(*_: object) -> None:
    raise TimeoutError("it took too much processor time")


def _peak() -> float:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM in /proc/self/status")


def _virtual_memory() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
