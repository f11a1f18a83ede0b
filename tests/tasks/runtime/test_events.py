"""Events reach the listener of their context, and progress stops a run that has ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest

from rudalle_lib.errors import StoppedError
from tasks.runtime.events import Event, Noticed, ShardFailed, Step, emit, listener, notice, reporter
from tasks.runtime.stopping import stop_at_the_end, stop_if_requested


@pytest.fixture
def events() -> Iterator[list[Event]]:
    """The events of this context."""
    events: list[Event] = []
    token = listener.set(events.append)
    yield events
    listener.reset(token)


def test_without_a_listener_events_are_dropped() -> None:
    emit(ShardFailed(0, "decode: damaged"))
    notice("A file is damaged.")
    reporter("decode", 0)(1, 2)


def test_events_reach_the_listener_in_order(events: list[Event]) -> None:
    emit(ShardFailed(3, "decode: damaged"))
    notice("A file is damaged.")
    reporter("decode", 3)(1, 2)
    assert events == [
        ShardFailed(3, "decode: damaged"),
        Noticed("A file is damaged."),
        Step("decode", 3, 1, 2),
    ]


def test_a_copied_context_has_the_listener(events: list[Event]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(notice, "lost").result()
        pool.submit(copy_context().run, notice, "heard").result()
    assert events == [Noticed("heard")]


def test_work_stops_between_two_steps_after_the_run_has_ended() -> None:
    report = reporter("generate", 0)
    report(1, 2)
    with stop_at_the_end(threading.Event()), ThreadPoolExecutor(1) as pool:
        context = copy_context()
        pool.submit(context.run, report, 1, 2).result()
    with pytest.raises(StoppedError, match="asked to stop"):
        context.run(report, 2, 2)
    stop_if_requested()  # not for work outside of that run
    report(2, 2)


def test_an_exception_stops_the_tasks_of_a_run_too() -> None:
    with pytest.raises(KeyboardInterrupt), stop_at_the_end(threading.Event()):
        context = copy_context()
        raise KeyboardInterrupt
    with pytest.raises(StoppedError):
        context.run(stop_if_requested)
