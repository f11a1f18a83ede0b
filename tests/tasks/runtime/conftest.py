"""A running Ray, for the tests of its workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.worker_pools import running_ray


@pytest.fixture(scope="module")
def started_ray() -> Iterator[None]:
    """Ray with room for two workers, whose processes import this tree."""
    with running_ray():
        yield
