"""A CPU with AMX, for the layers and caches that use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.compiled import AMX, amx_by


@pytest.fixture(params=AMX)
def amx(request: pytest.FixtureRequest) -> Iterator[None]:
    """This CPU has AMX: emulated on any machine, and the real one where there is one."""
    with amx_by(request.param):
        yield
