"""From whatever a file system or object store raises to one clear sentence without secrets.

Also the one place that tells faults which may pass by themselves from those which will not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rudalle_lib.errors import RudalleError, StorageError, TransientError

#: Environment variables whose values must never be shown.
SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")

#: S3 error codes that mean the credentials themselves are wrong.
WRONG_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "AuthFailure",
    "UnrecognizedClientException",
    "AuthorizationHeaderMalformed",
}
EXPIRED_CREDENTIALS = {"ExpiredToken", "RequestTimeTooSkewed", "TokenRefreshRequired"}

#: S3 error codes of a bad moment. Sources: "Error responses" of the Amazon S3 API reference, and
#: botocore's standard retry mode.
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
    # The upload was cut or changed on its way.
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
}
TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}

#: By name, because the packages that raise them are optional: botocore, aiohttp, http.client.
TRANSIENT_KINDS = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "HTTPClientError",  # with ReadTimeoutError and ConnectionClosedError below it
    "ResponseParserError",
    "IncompleteReadError",
    "ResponseStreamingError",
    "ClientConnectionError",
    "ClientPayloadError",
    "IncompleteRead",
}
TRANSIENT_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.ESTALE,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
}


def public_url(url: str) -> str:
    """The URL without user name, password, query and fragment, for logs and manifests."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@contextlib.contextmanager
def clear_errors(action: str, url: str) -> Iterator[None]:
    """Turn the errors of a block into `StorageError`; `action` as in "write", "list".

    The sentence says what could not be done, where, why, and what to do about it.
    """
    try:
        yield
    except (RudalleError, MemoryError):
        raise
    except Exception as error:
        kind = TransientError if is_transient(error) else StorageError
        raise kind(f"Cannot {action} {public_url(url)}: {_reason(error, url)}.") from None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed in a while, with nothing changed by anyone."""
    error = _behind(error)
    response = _response(error)
    if response is not None:
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _s3_code(error) in TRANSIENT_CODES or status in TRANSIENT_STATUS
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if _is_unknown_host(error):
        return False
    if any(kind.__name__ in TRANSIENT_KINDS for kind in type(error).__mro__):
        return True
    if getattr(error, "status", None) in TRANSIENT_STATUS:  # aiohttp, for http:// and https://
        return True
    return isinstance(error, OSError) and error.errno in TRANSIENT_ERRNO


def _behind(error: BaseException) -> BaseException:
    """What went wrong on the web, where fsspec made a missing file of everything."""
    cause = error.__cause__
    of_web = cause is not None and type(cause).__module__.startswith("aiohttp")
    return cause if of_web and isinstance(error, FileNotFoundError) and cause else error


def _is_unknown_host(error: BaseException) -> bool:
    """Whether aiohttp was told that no server has that name; a failing DNS says otherwise."""
    reason = getattr(error, "os_error", None)
    return isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME


def is_conflict(error: BaseException) -> bool:
    """Whether an object store says that the object to create is there, or being created, already.

    412 is the answer to `If-None-Match: *`, 409 that to two uploads of one name at once.
    """
    status = (_response(error) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in (409, 412)


def _reason(error: BaseException, url: str) -> str:
    error = _behind(error)
    code = _s3_code(error)
    s3 = url.startswith(("s3://", "s3a://"))
    if s3 and (code is not None or _is_botocore(error) or is_transient(error)):
        return _s3_reason(error, code, url)
    if s3 and "nvalid endpoint" in str(error):
        return "AWS_ENDPOINT_URL is not a URL; expected for example http://127.0.0.1:8333"
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
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return "the file system is read-only"
    if isinstance(error, ImportError):
        scheme = url.partition("://")[0]
        return f"the Python package for {scheme}:// is not installed ({masked(str(error))})"
    if isinstance(error, ValueError) and "rotocol" in str(error):
        return "unknown kind of URL; expected a folder, s3://bucket/prefix or another fsspec URL"
    return _own_words(error)


def _s3_code(error: BaseException) -> str | None:
    response = _response(error)
    return None if response is None else str(response.get("Error", {}).get("Code"))


def _response(error: BaseException) -> dict[str, Any] | None:
    """The answer behind a botocore error, also behind the exception that s3fs made of it."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return None


def _is_web_page(error: BaseException) -> bool:
    """Whether the answer was HTML, which no S3 server speaks: errors are XML there."""
    headers = (_response(error) or {}).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("content-type", "")).startswith("text/html")


def _is_botocore(error: BaseException) -> bool:
    return type(error).__module__.startswith(("botocore", "aiobotocore"))


def _s3_reason(error: BaseException, code: str | None, url: str) -> str:
    bucket = urlsplit(url).netloc
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    server = f"the S3 server at {public_url(endpoint)}" if endpoint else "Amazon S3"
    kind = type(error).__name__
    if _is_web_page(error):
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
        return f"{server} does not know this request; is it an S3 server? Check AWS_ENDPOINT_URL"
    if code is None and is_transient(error):
        return f"{server} breaks connections off; check the network, or try again later"
    return f"{server} answered: {_own_words(error)}"


def _own_words(error: BaseException) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return masked(" ".join(words.split()).rstrip(".")) or type(error).__name__


def masked(text: str) -> str:
    """The text with every secret of the environment replaced by stars."""
    for name in SECRET_VARIABLES:
        secret = os.environ.get(name)
        if secret:
            text = text.replace(secret, "***")
    return text
