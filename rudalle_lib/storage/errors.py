"""Turn errors of file systems and object stores into one clear sentence without secrets.

This is also the only place that decides which errors are transient and worth a retry.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

from rudalle_lib.errors import RudalleError, StorageError, TransientError
from rudalle_lib.storage.urls import hide_urls, scheme_of
from rudalle_lib.storage.urls import public_url as public_url

SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_SECRET",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
)
"""Environment variables whose values must never be shown."""

EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""Extras of this package with what URLs of a scheme need."""

MIN_SECRET = 4
"""Shorter values of these variables are no secrets, and occur in ordinary words."""

WRONG_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "AuthFailure",
    "UnrecognizedClientException",
    "AuthorizationHeaderMalformed",
}
"""S3 error codes for credentials that the server does not accept."""

EXPIRED_CREDENTIALS = {"ExpiredToken", "RequestTimeTooSkewed", "TokenRefreshRequired"}
"""S3 error codes for credentials that were valid once."""

TRANSIENT_CODES = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    # The upload was cut off or corrupted in transit.
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
}
"""S3 error codes that are worth a retry.

Sources: "Error responses" in the Amazon S3 API reference; botocore's standard retry mode.
"""

TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
"""HTTP status codes that are worth a retry."""

TRANSIENT_TYPES = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "HTTPClientError",  # the base class of ReadTimeoutError and ConnectionClosedError
    "ResponseParserError",
    "IncompleteReadError",
    "ResponseStreamingError",
    "ClientConnectionError",
    "ClientPayloadError",
    "IncompleteRead",
}
"""Exception types of botocore, aiohttp and http.client that are worth a retry.

They are matched by name, because botocore and aiohttp are optional.
"""

TRANSIENT_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.ESTALE,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
}
"""Error numbers of the operating system that are worth a retry."""


@contextlib.contextmanager
def translate_errors(action: str, url: str) -> Iterator[None]:
    """Turn exceptions in a block into a `StorageError` that says what failed, where and why.

    Args:
        action: completes "Cannot ...", for example "write" or "list".
        url: the file or folder; shown without credentials.

    Raises:
        TransientError: the same request may succeed later.
        StorageError: any other exception, except a `RudalleError` or `MemoryError`, which pass
            unchanged.
    """
    try:
        yield
    except (RudalleError, MemoryError):
        raise
    except Exception as error:
        kind = TransientError if is_transient(error) else StorageError
        raise kind(f"Cannot {action} {public_url(url)}: {_explain(error, url)}.") from None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later although nobody changed anything."""
    error = _http_error(error)
    response = _response(error)
    if response is not None:
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _s3_code(error) in TRANSIENT_CODES or status in TRANSIENT_STATUS
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if _is_unknown_host(error):
        return False
    if isinstance(error, socket.gaierror):
        return True
    if any(kind.__name__ in TRANSIENT_TYPES for kind in type(error).__mro__):
        return True
    if getattr(error, "status", None) in TRANSIENT_STATUS:  # aiohttp, for http:// and https://
        return True
    return isinstance(error, OSError) and error.errno in TRANSIENT_ERRNO


def is_conflict(error: BaseException) -> bool:
    """Whether an object store refused to write an object because another writer was faster.

    The status is 412 for a failed `If-None-Match: *` or `If-Match`, and 409 for concurrent uploads
    of one name.
    """
    return _s3_status(error) in (409, 412)


def is_unknown(error: BaseException) -> bool:
    """Whether an object store does not know what a header asks for."""
    return _s3_status(error) == 501


def _s3_status(error: BaseException) -> int | None:
    status = (_response(error) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None if status is None else int(status)


def mask_secrets(text: str) -> str:
    """The text with URLs as `public_url` shows them, and stars for values of secret variables."""
    text = hide_urls(text)
    for name in SECRET_VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= MIN_SECRET:
            text = text.replace(secret, "***")
    return text


def _http_error(error: BaseException) -> BaseException:
    """The aiohttp error behind the FileNotFoundError that fsspec raises for every HTTP failure."""
    cause = error.__cause__
    from_aiohttp = cause is not None and type(cause).__module__.startswith("aiohttp")
    return cause if from_aiohttp and isinstance(error, FileNotFoundError) and cause else error


def _is_unknown_host(error: BaseException) -> bool:
    """Whether DNS answered that the host does not exist; a DNS failure is another error."""
    reason = getattr(error, "os_error", error)
    return isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME


def _explain(error: BaseException, url: str) -> str:
    """Why it failed and what to do, as the second half of a sentence."""
    error = _http_error(error)
    code = _s3_code(error)
    s3 = scheme_of(url) in ("s3", "s3a")
    if s3 and (code is not None or _is_botocore(error) or is_transient(error)):
        return _explain_s3(error, code, url)
    if s3 and "nvalid endpoint" in str(error):
        return "AWS_ENDPOINT_URL is not a URL; expected for example http://127.0.0.1:8333"
    if isinstance(error, socket.gaierror):
        return f"the name of the host cannot be resolved ({error.strerror})"
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, IsADirectoryError):
        return "it is a folder, a file was expected"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return "a file is in the way where a folder was expected"
    if isinstance(error, PermissionError):
        return "permission denied; check the owner and mode of the folder"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run again"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "the file is larger than the disk or a limit of this process (ulimit -f) allows"
    if isinstance(error, OSError) and error.errno == errno.EXDEV:
        return "a volume of its own is mounted there; an output must be on one volume"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return "the file system is read-only"
    if isinstance(error, ImportError):
        scheme = scheme_of(url)
        extra = EXTRAS.get(scheme)
        hint = f"; pip install 'rudalle-flows[{extra}]' installs it" if extra else ""
        reason = f"is not installed ({mask_secrets(str(error))}){hint}"
        return f"the Python package for {scheme}:// {reason}"
    if isinstance(error, ValueError) and "rotocol" in str(error):
        return "unknown kind of URL; expected a local path or a URL such as s3://bucket/prefix"
    return _original_message(error)


def _explain_s3(error: BaseException, code: str | None, url: str) -> str:
    bucket = url.partition("://")[2].partition("/")[0]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    server = f"the S3 server at {public_url(endpoint)}" if endpoint else "Amazon S3"
    kind = type(error).__name__
    if _is_html(error):
        return f"{server} answered with a web page; is it an S3 server? Check AWS_ENDPOINT_URL"
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket!r} on {server}; create it or correct the URL"
    if code in ("NoSuchKey", "404"):
        return "it does not exist"
    if code in WRONG_CREDENTIALS:
        return (
            f"{server} does not accept the credentials; check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
        )
    if code in EXPIRED_CREDENTIALS:
        return f"{server} says that the credentials have expired ({code}); renew them"
    if code in ("AccessDenied", "403", "AllAccessDisabled"):
        return (
            f"{server} denies access; check the credentials in AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY and what they may do in bucket {bucket!r}"
        )
    if kind in ("NoCredentialsError", "PartialCredentialsError"):
        return "no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if kind in ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError"):
        return f"{server} does not answer; check AWS_ENDPOINT_URL and the network"
    if code in ("SlowDown", "ServiceUnavailable", "503"):
        return f"{server} asks to slow down; try again later"
    if (_response(error) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode") in (405, 501):
        return f"{server} does not support this request; is it an S3 server? Check AWS_ENDPOINT_URL"
    if code is None and is_transient(error):
        return f"{server} closed the connection; check the network, or try again later"
    return f"{server} answered: {_original_message(error)}"


def _s3_code(error: BaseException) -> str | None:
    response = _response(error)
    return None if response is None else str(response.get("Error", {}).get("Code"))


def _response(error: BaseException) -> dict[str, Any] | None:
    """The response in a botocore error, or in the botocore error that caused an s3fs error."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return None


def _is_html(error: BaseException) -> bool:
    """Whether the response was HTML; S3 servers answer errors in XML."""
    headers = (_response(error) or {}).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("content-type", "")).startswith("text/html")


def _is_botocore(error: BaseException) -> bool:
    return type(error).__module__.startswith(("botocore", "aiobotocore"))


def _original_message(error: BaseException) -> str:
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return mask_secrets(" ".join(message.split()).rstrip(".")) or type(error).__name__
