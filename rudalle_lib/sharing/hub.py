"""A dataset of the Hugging Face hub as the target of a push.

Data files are uploaded one after the other, without a commit (`preupload_lfs_files`): the hub keeps
them by their SHA-256, so a push that was interrupted sends none of them twice. One commit at the
end makes all of them visible, with the pages, and deletes what is outdated. So nobody ever loads
half of a dataset.

Where `hf_xet` is installed, `huggingface_hub` sends data by the Xet protocol, also to servers that
do not have it, such as mirrors. So the server is asked first, and gets LFS uploads if it has none.
"""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from rudalle_lib.digests import DigestingStream
from rudalle_lib.errors import RudalleError, StorageError, TransientError
from rudalle_lib.sharing.contents import SharedFile
from rudalle_lib.storage.errors import mask_secrets

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

SCHEME = "hf://"

HUB = "https://huggingface.co"

IN_MEMORY = 10 * 2**20
"""Files of at most this many bytes are kept in memory until the commit; others on a disk until they
are uploaded. The hub takes no larger file as a regular one, which is sent with the commit."""

_NAME = re.compile(
    r"hf://datasets/(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(@(?P<revision>[^@]+?))?/?",
    re.ASCII,
)


class HubTarget:
    """A dataset repository, created private unless it is to be public."""

    def __init__(self, url: str, revision: str | None = None, public: bool = False) -> None:
        """Find the token; nothing is requested.

        Args:
            url: `hf://datasets/owner/name`, with `@revision` at its end if need be.
            revision: Branch that is pushed to; `main` by default. It is created if it is missing.
            public: Whether everybody may see the dataset.

        Raises:
            StorageError: The URL names no dataset, or there is no token.
        """
        from huggingface_hub import HfApi, get_token

        match = _NAME.fullmatch(url)
        if match is None:
            raise StorageError(f"expected hf://datasets/owner/name, found {url[:200]}")
        token = get_token()
        if token is None:
            raise StorageError(
                "No token of the Hugging Face hub was found: set HF_TOKEN to one that may write "
                "(https://huggingface.co/settings/tokens), or log in with `hf auth login`."
            )
        self._repository, self._public = match["name"], public
        self._revision = revision or match["revision"] or "main"
        self._endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
        self._api: HfApi = HfApi(endpoint=self._endpoint, token=token, library_name="rudalle-flows")
        self._headers = {"authorization": f"Bearer {token}"}
        self._has_xet = False
        self._sent: list[CommitOperationAdd] = []
        self.name = f"hf://datasets/{self._repository}"

    def existing(self) -> frozenset[str]:
        """The paths of all files of the revision; none if there is no such dataset or revision.

        Raises:
            StorageError: It is public and was not said to be, or cannot be read.
        """
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        with self._translated("look at"), _quiet():
            try:
                info = self._api.dataset_info(self._repository)
                self._check_visibility(bool(info.private))
                tree = self._api.list_repo_tree(
                    self._repository, recursive=True, revision=self._revision, repo_type="dataset"
                )
                return frozenset(entry.path for entry in tree if hasattr(entry, "size"))
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return frozenset()

    def prepare(self) -> None:
        """Create the dataset and the revision if they do not exist; ask how to upload."""
        with self._translated("create"), _quiet():
            create: Any = self._api.create_repo
            create(self._repository, repo_type="dataset", private=not self._public, exist_ok=True)
            if self._revision != "main":
                self._api.create_branch(
                    self._repository, branch=self._revision, repo_type="dataset", exist_ok=True
                )
            self._has_xet = self._offers_xet()

    def send(self, file: SharedFile) -> int:
        """Upload a data file, unless the hub has its content."""
        from huggingface_hub import CommitOperationAdd

        with ExitStack() as opened:
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="rudalle-flows-"))
            path = Path(folder) / "file"
            with open(path, "wb") as stream, DigestingStream(stream) as counting:
                file.write(counting)
            content: bytes | Path | BinaryIO = path
            if counting.written <= IN_MEMORY:
                content = self._source(path.read_bytes())
            elif not self._has_xet:
                content = opened.enter_context(path.open("rb"))
            with self._translated(f"upload {file.path} to"), _quiet():
                addition = CommitOperationAdd(file.path, content)
                addition.upload_info.sha256 = bytes.fromhex(counting.hexdigest())
                self._api.preupload_lfs_files(
                    self._repository, [addition], repo_type="dataset", revision=self._revision
                )
        self._sent.append(addition)
        return counting.written

    def finish(self, pages: Mapping[str, bytes], outdated: Collection[str], message: str) -> str:
        """Commit all files that were sent, the pages, and the deletion of outdated files."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *self._sent,
            *(CommitOperationAdd(path, self._source(pages[path])) for path in sorted(pages)),
            *(CommitOperationDelete(path) for path in outdated),
        ]
        with self._translated("commit to"), _quiet():
            self._api.create_commit(
                self._repository,
                operations,
                commit_message=message,
                repo_type="dataset",
                revision=self._revision,
            )
        return f"{self._endpoint}/datasets/{self._repository}"

    def _source(self, content: bytes) -> bytes | BinaryIO:
        """Content as it is uploaded: what is read from a stream is never sent by Xet."""
        return content if self._has_xet else io.BytesIO(content)

    def _offers_xet(self) -> bool:
        """Whether the server takes uploads by Xet: it then gives tokens for them."""
        from huggingface_hub import get_session

        revision = quote(self._revision, safe="")
        path = f"api/datasets/{self._repository}/xet-write-token/{revision}"
        answer = get_session().get(f"{self._endpoint}/{path}", headers=self._headers)
        if answer.status_code == 404:
            return False
        answer.raise_for_status()
        return True

    def _check_visibility(self, private: bool) -> None:
        if not private and not self._public:
            raise StorageError(
                f"{self.name} is public: everybody would see what is pushed there. Add --public, "
                "or make it private in its settings."
            )

    @contextmanager
    def _translated(self, action: str) -> Iterator[None]:
        """Turn errors of the hub and of the network into one sentence without secrets."""
        try:
            yield
        except (RudalleError, MemoryError):
            raise
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            found = f"{self._endpoint} {_reason(error, status)}"
            passing = status in (408, 429, 500, 502, 503, 504) or _is_network(error)
            kind = TransientError if passing else StorageError
            raise kind(f"Cannot {action} {self.name}: {found}.") from None


def is_hub_url(url: str) -> bool:
    """Whether a URL is one of the hub."""
    return url.lower().startswith(SCHEME)


def _reason(error: Exception, status: int | None) -> str:
    if status == 401:
        return "does not accept the token; check HF_TOKEN, or log in with `hf auth login`"
    if status == 403:
        return "says that the token may not do this; it needs write access to the owner's datasets"
    if _is_network(error):
        return "does not answer; check the network and HF_ENDPOINT, then push again"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    if cause is not None:  # a failed upload names only the file
        lines += [line.strip() for line in str(cause).splitlines() if line.strip()][:1]
    return "answered: " + mask_secrets("; ".join(lines[:2]) or type(error).__name__).rstrip(".")


def _is_network(error: BaseException) -> bool:
    """Whether there was no answer; the client's library for HTTP has changed its name before."""
    names = {kind.__name__ for one in (error, error.__cause__) for kind in type(one).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError"})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the hub's own progress bars and warnings, such as that nothing has changed."""
    from huggingface_hub.utils import logging as logs
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    before, verbosity = are_progress_bars_disabled(), logs.get_verbosity()
    disable_progress_bars()
    logs.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if not before:
            enable_progress_bars()
