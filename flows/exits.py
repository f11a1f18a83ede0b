"""How commands end: an exit code, and one sentence on stderr when it is not 0."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from rudalle_lib.errors import LeaseLostError, RudalleError, ShardError

FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
GOES_ON = "What is finished is safe; the same command goes on."


class Terminated(BaseException):
    """SIGTERM, as Ctrl-C has an exception of its own."""


@contextmanager
def clear_exit() -> Iterator[None]:
    """Turn errors into an exit code and a sentence; what is not ours to foresee keeps its trace."""
    try:
        with _terminable():
            yield
    except (ShardError, LeaseLostError) as error:
        fail(str(error), FAILED)
    except RudalleError as error:
        fail(str(error), BAD_INPUT)
    except MemoryError:
        fail(f"There is not enough memory. {GOES_ON}", FAILED)
    except KeyboardInterrupt:
        fail(f"Interrupted. {GOES_ON}", INTERRUPTED)
    except Terminated:
        fail(f"Stopped. {GOES_ON}", TERMINATED)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`; in a flow Prefect stops the run first, then passes it on."""
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_terminated(*_: object) -> NoReturn:
    raise Terminated


def fail(message: str, code: int) -> None:
    """Say what is wrong on stderr and leave."""
    sys.stdout.flush()
    typer.echo(f"rudalle-flows: {message}", err=True)
    raise typer.Exit(code)
