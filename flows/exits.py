"""How commands end: an exit code, and one sentence on stderr when it is not 0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rudalle_lib.errors import LeaseLostError, RudalleError, ShardError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


@contextmanager
def clear_exit() -> Iterator[None]:
    """Turn errors into an exit code and a sentence; what is not ours to foresee keeps its trace."""
    try:
        yield
    except (ShardError, LeaseLostError) as error:
        fail(str(error), FAILED)
    except RudalleError as error:
        fail(str(error), BAD_INPUT)
    except MemoryError:
        fail(
            "There is not enough memory. What is finished is safe; the same command goes on.",
            FAILED,
        )
    except KeyboardInterrupt:
        fail("Interrupted. What is finished is safe; the same command goes on.", INTERRUPTED)


def fail(message: str, code: int) -> None:
    """Say what is wrong on stderr and leave."""
    sys.stdout.flush()
    typer.echo(f"rudalle-flows: {message}", err=True)
    raise typer.Exit(code)
