"""Where a fine-tuning works: in its output or, if that is a URL, in a folder of this machine.

Checkpoints have gigabytes and are written in place, which object stores cannot do. So for a URL
they are written to the user's cache, and files that have changed are uploaded: at each measurement,
when it stops, and at its end. Another machine fetches them before it goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rudalle_lib.digests import digest_of
from rudalle_lib.errors import StorageError
from rudalle_lib.storage import bounds
from rudalle_lib.storage.errors import translate_errors
from rudalle_lib.storage.filesystems import connect
from rudalle_lib.storage.guards import check_guard
from rudalle_lib.storage.storage import Storage
from rudalle_lib.storage.urls import is_local_url
from rudalle_lib.weights.digest_cache import cache_folder

CHECKPOINTS, SAMPLES, TENSORBOARD, FIGURES = (
    "checkpoints",
    "samples",
    "tensorboard",
    "figures.jsonl",
)
"""Folders of an output, and the file with the figures of all steps."""

OF_OTHERS = re.compile(r"samples/step-\d{8}\.png|tensorboard/events\.out\.tfevents\..*")
"""Files of an earlier training in the same output, which a new one replaces."""


class WorkFolder:
    """The folder of an output on this machine.

    Attributes:
        root: the output itself, or a folder that is uploaded to it.
        training: folder of the training in it.
    """

    def __init__(self, storage: Storage, version: str) -> None:
        """Find the folder.

        Args:
            storage: the output.
            version: of the training.

        Raises:
            StorageError: the output is a URL, and there is no cache to work in.
        """
        self._storage = storage
        self._sent: dict[str, tuple[int, int]] = {}
        self._is_output = is_local_url(storage.url())
        self.root = Path(storage.url()) if self._is_output else _cache(storage)
        self.training = self.root / CHECKPOINTS / version

    @property
    def result(self) -> Path:
        """The file that a training writes last."""
        return self.training / "trained.json"

    @property
    def is_trained(self) -> bool:
        """Whether the training is finished."""
        return self.result.exists() and self.learnt.exists()

    @property
    def learnt(self) -> Path:
        """The file with the tensors that have learnt."""
        return self.training / "learnt.pt"

    def fetch(self) -> None:
        """Fetch the training of the output if it is further than the one on this machine."""
        if self._is_output:
            return
        inner = self._inner(self.training)
        there = self._storage.read_bytes_if_any(f"{inner}/{FIGURES}")
        if _steps(there) <= _steps(_read(self.training / FIGURES)):
            return
        for path in self._storage.list(inner):
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(f"{target.name}.fetched")
            _download(self._storage, path, fresh)
            fresh.replace(target)

    def begin(self) -> None:
        """Delete what an earlier training has left beside its checkpoints, unless this one goes on.

        Its checkpoints stay: they have another version, and may be gone on with.
        """
        self.training.mkdir(parents=True, exist_ok=True)
        if _read(self.training / FIGURES):
            return
        for path in self._storage.list():
            if OF_OTHERS.fullmatch(path):
                self._storage.delete(path)
        for folder in (SAMPLES, TENSORBOARD):
            for file in sorted((self.root / folder).glob("*")):
                if OF_OTHERS.fullmatch(self._inner(file)):
                    file.unlink()

    def publish_figures(self) -> None:
        """Copy the figures of the training to where people look for them."""
        with suppress(FileNotFoundError):
            content = (self.training / FIGURES).read_bytes()
            self._storage.write_bytes(FIGURES, content)

    def send(self, *more: Path) -> None:
        """Upload what has changed since the last time, also in more folders below `root`."""
        if self._is_output:
            return
        folders = (self.training, self.root / SAMPLES, self.root / TENSORBOARD, *more)
        files = [file for folder in folders for file in sorted(folder.rglob("*"))]
        # Figures last: they say how far a training is, see `fetch`.
        for file in sorted(files, key=lambda file: file.name == FIGURES):
            if not file.is_file() or file.suffix in (".new", ".fetched"):
                continue
            with suppress(FileNotFoundError):  # replaced by a newer one in the meantime
                status = file.stat()
                state = status.st_mtime_ns, status.st_size
                if self._sent.get(self._inner(file)) != state:
                    _upload(self._storage, self._inner(file), file)
                    self._sent[self._inner(file)] = state

    def discard(self, names: Sequence[str]) -> None:
        """Delete files of the training that are not needed any more, here and in the output."""
        for pattern in names:
            for file in sorted(self.training.glob(pattern)):
                file.unlink()
                if not self._is_output:
                    self._storage.delete(self._inner(file))

    def _inner(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _cache(storage: Storage) -> Path:
    cache = cache_folder()
    if cache is None:
        raise StorageError(
            f"{storage.public_path()} is a URL, and a fine-tuning works in a folder of this "
            "machine first; set XDG_CACHE_HOME to one with room for checkpoints."
        )
    return cache / "training" / digest_of(storage.url())


def _upload(storage: Storage, path: str, file: Path) -> None:
    """Write a file of any size to an output that is a URL."""
    url = storage.url(path)
    with translate_errors("write", url):
        check_guard(storage.url())
        file_system, full = connect(url, None, bounds.OUTPUTS)
        file_system.put_file(str(file), full)


def _download(storage: Storage, path: str, file: Path) -> None:
    url = storage.url(path)
    with translate_errors("read", url):
        file_system, full = connect(url, None, bounds.OUTPUTS)
        file_system.get_file(full, str(file))


def _read(path: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _steps(figures: bytes | None) -> int:
    """The number of steps in a file of figures; -1 if there is none."""
    lines = [line for line in (figures or b"").splitlines(keepends=True) if line.endswith(b"\n")]
    return int(json.loads(lines[-1])["step"]) if lines else -1
