"""Which failures of a task are tried again."""

from __future__ import annotations

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from rudalle_lib.errors import (
    OutOfMemoryError,
    ShardError,
    StorageError,
    TransientError,
    WeightsError,
)
from rudalle_lib.storage.errors import translate_errors
from tasks.plan import plan
from tasks.runtime.options import OPTIONS, RETRY_DELAYS, should_retry


def tried_again(error: BaseException) -> bool:
    return should_retry(plan, TaskRun.model_construct(), Failed(data=error))


@pytest.mark.parametrize(
    ("raised", "again"),
    [
        (ConnectionResetError(104, "reset"), True),
        (TimeoutError("30 s"), True),
        (OSError(11, "try again"), True),
        (OSError(16, "busy"), True),
        (OSError(28, "no space"), False),
        (OSError(27, "too large"), False),
        (PermissionError(13, "denied"), False),
        (FileNotFoundError(2, "missing"), False),
        (ValueError("not Parquet"), False),
    ],
)
def test_a_fault_of_storage_is_tried_again_if_it_may_pass(raised: Exception, again: bool) -> None:
    with pytest.raises(StorageError) as error, translate_errors("read", "/a"):
        raise raised
    assert tried_again(error.value) is again is isinstance(error.value, TransientError)


@pytest.mark.parametrize("kind", [ShardError, WeightsError, OutOfMemoryError, ValueError, KeyError])
def test_nothing_else_is(kind: type[Exception]) -> None:
    assert not tried_again(kind("wrong"))


def test_pauses_grow_differ_and_end() -> None:
    assert list(RETRY_DELAYS) == sorted(RETRY_DELAYS) and RETRY_DELAYS[-1] <= 60
    assert plan.retries == len(RETRY_DELAYS) and OPTIONS["retry_jitter_factor"] > 0
