"""What each fault of a real S3 server becomes: nothing at all, where another try helps; else one
clear sentence, of a kind that says whether another try may help later.
"""

from __future__ import annotations

import pytest

from rudalle_lib.errors import StorageError, TransientError
from rudalle_lib.storage import Storage
from tests.chaos.fault_proxy import KINDS, Fault, FaultProxy, Kind, Request
from tests.s3_server import S3Server

pytestmark = pytest.mark.chaos


@pytest.fixture
def storage(s3_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Storage behind the proxy, with one file in it and little patience."""
    Storage(s3_url).write_bytes("a.bin", b"before" * 1000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr("tests.chaos.fault_proxy.STALL_SECONDS", 0.6)
    proxy.requests.clear()
    patience = {"connect_timeout": 1, "read_timeout": 0.3, "retries": {"total_max_attempts": 2}}
    return Storage(s3_url, {"config_kwargs": patience})


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_passes_is_never_seen(
    storage: Storage, proxy: FaultProxy, s3_url: str, kind: Kind
) -> None:
    def first(request: Request) -> Fault | None:
        return Fault(kind) if request.number in (1, 3) else None

    proxy.decide = first
    assert storage.read_bytes("a.bin") == b"before" * 1000
    storage.write_bytes("a.bin", b"after" * 1000)
    assert len(proxy.faults) >= 2
    assert storage.read_bytes("a.bin") == b"after" * 1000


SLOW = {"stall": [pytest.mark.slow]}  # every attempt waits for its time-out


@pytest.mark.parametrize("kind", [pytest.param(k, marks=SLOW.get(k, [])) for k in KINDS])
def test_a_fault_that_stays_is_a_sentence_and_may_be_tried_again(
    storage: Storage, proxy: FaultProxy, kind: Kind
) -> None:
    proxy.decide = lambda _: Fault(kind)
    actions = [lambda: storage.read_bytes("a.bin"), lambda: storage.write_bytes("a", b"1")]
    if kind in ("cut", "stall"):  # an upload's answer has no body to cut; stalling takes long
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
def test_what_no_other_try_helps_is_said_at_once(
    storage: Storage, proxy: FaultProxy, status: int, code: str, words: str
) -> None:
    proxy.decide = lambda _: Fault("answer", (status, code, "no"))
    with pytest.raises(StorageError) as raised:
        storage.check_writable()
    assert words in str(raised.value)
    assert not isinstance(raised.value, TransientError)
    assert len(proxy.requests) <= 2


@pytest.mark.usefixtures("storage")
def test_a_file_is_read_with_one_request(s3_url: str, proxy: FaultProxy) -> None:
    proxy.decide = lambda _: None
    patient = Storage(s3_url)
    assert patient.read_bytes("a.bin") == b"before" * 1000
    assert patient.read_bytes_if_any("a.bin") == b"before" * 1000
    assert patient.read_bytes_if_any("b.bin") is None
    assert [request.method for request in proxy.requests] == 3 * ["GET"]


def test_a_read_only_key_is_known_before_any_work(
    storage: Storage, proxy: FaultProxy, s3_server: S3Server
) -> None:
    def read_only(request: Request) -> Fault | None:
        denied = (403, "AccessDenied", "no")
        return Fault("answer", denied) if request.method in ("PUT", "POST", "DELETE") else None

    proxy.decide = read_only
    with pytest.raises(StorageError, match="Cannot write to s3://.* denies access"):
        storage.check_writable()
