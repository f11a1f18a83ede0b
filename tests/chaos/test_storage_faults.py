"""Transient faults of a real S3 server are retried. Others become a clear error, whose type says
whether a later retry may help.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rudalle_lib.errors import StorageError, TransientError
from rudalle_lib.storage.probes import check_writable
from rudalle_lib.storage.storage import Storage
from tests.chaos.fault_proxy import KINDS, Fault, FaultProxy, Kind, Request
from tests.support.s3_server import S3Server

pytestmark = pytest.mark.chaos


@pytest.fixture
def storage(s3_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Storage behind the proxy, with one file and short timeouts."""
    Storage(s3_url).write_bytes("a.bin", b"before" * 1000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr("tests.chaos.fault_proxy.STALL_SECONDS", 0.6)
    proxy.requests.clear()
    config = {"connect_timeout": 1, "read_timeout": 0.3, "retries": {"total_max_attempts": 2}}
    return Storage(s3_url, {"config_kwargs": config})


@pytest.mark.parametrize("kind", KINDS)
def test_a_transient_fault_is_retried(
    storage: Storage, proxy: FaultProxy, s3_url: str, kind: Kind
) -> None:
    def first(request: Request) -> Fault | None:
        return Fault(kind) if request.number in (1, 3) else None

    proxy.decide = first
    assert storage.read_bytes("a.bin") == b"before" * 1000
    storage.write_bytes("a.bin", b"after" * 1000)
    assert len(proxy.faults) >= 2
    assert storage.read_bytes("a.bin") == b"after" * 1000


SLOW = {"stall": [pytest.mark.slow]}  # every attempt waits for its timeout


@pytest.mark.parametrize("kind", [pytest.param(k, marks=SLOW.get(k, [])) for k in KINDS])
def test_a_permanent_fault_is_a_clear_error_that_may_be_retried(
    storage: Storage, proxy: FaultProxy, kind: Kind
) -> None:
    proxy.decide = lambda _: Fault(kind)
    actions: list[Callable[[], object]] = [
        lambda: storage.read_bytes("a.bin"),
        lambda: storage.write_bytes("a", b"1"),
    ]
    if kind in ("half response", "stall"):  # responses to uploads have no body; stalls are slow
        actions.pop()
    for action in actions:
        with pytest.raises(TransientError) as raised:
            action()
        message = str(raised.value)
        assert message.startswith("Cannot ") and message.count("\n") == 0
        assert "http://127.0.0.1" in message and message.endswith(".")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredToken", "says that the credentials have expired (ExpiredToken); renew them"),
        (403, "RequestTimeTooSkewed", "have expired (RequestTimeTooSkewed); renew them"),
        (403, "AccessDenied", "denies access; check the credentials in AWS_ACCESS_KEY_ID"),
        (403, "InvalidAccessKeyId", "does not accept the credentials"),
        (404, "NoSuchBucket", "there is no bucket 'datasets'"),
    ],
)
def test_an_error_that_no_retry_can_fix_is_raised_at_once(
    storage: Storage, proxy: FaultProxy, status: int, code: str, words: str
) -> None:
    proxy.decide = lambda _: Fault("error", (status, code, "no"))
    with pytest.raises(StorageError) as raised:
        check_writable(storage)
    assert words in str(raised.value)
    assert not isinstance(raised.value, TransientError)
    assert len(proxy.requests) <= 2


@pytest.mark.usefixtures("storage")
def test_a_file_is_read_with_one_request(s3_url: str, proxy: FaultProxy) -> None:
    proxy.decide = lambda _: None
    storage = Storage(s3_url)
    assert storage.read_bytes("a.bin") == b"before" * 1000
    assert storage.read_bytes_if_any("a.bin") == b"before" * 1000
    assert storage.read_bytes_if_any("b.bin") is None
    assert [request.method for request in proxy.requests] == 3 * ["GET"]


def test_a_read_only_key_is_an_error_before_any_work(
    storage: Storage, proxy: FaultProxy, s3_server: S3Server
) -> None:
    def read_only(request: Request) -> Fault | None:
        denied = (403, "AccessDenied", "no")
        return Fault("error", denied) if request.method in ("PUT", "POST", "DELETE") else None

    proxy.decide = read_only
    with pytest.raises(StorageError, match="Cannot write to s3://.* denies access"):
        check_writable(storage)
