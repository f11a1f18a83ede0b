"""Small runs that draw different numbers of images of the same prompts, one after another."""

from __future__ import annotations

import importlib
import io
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import tiny_config
from tests.support.tiny_run import contents

TABLE = """prompt,images,seed,theme
чёрный квадрат на белом фоне,3,,malevich
красный круг на сером фоне,,7,malevich
синий крест на бежевом фоне,,,colour
a red square on a white background,,,
"""
"""Four prompts, one with a number of images of its own, and one that is rejected."""


class Killed(BaseException):
    """The run ends here, as by SIGKILL: files are written whole or not at all."""


def numbered(folder: Path, output: str, **changes: dict[str, Any]) -> RunConfig:
    """The configuration of a run with changed sections; its table and models are in `folder`."""
    config = tiny_config(folder, str(folder / output), TABLE)
    settings = config.model_dump(mode="json")
    for name, change in changes.items():
        settings[name] |= change
    return RunConfig.model_validate(settings)


def in_rounds(finished: str) -> dict[str, Any]:
    """Sections of a run in rounds that accepts half of the images of a finished run."""
    scores: list[float] = []
    for manifest in read_shard_manifests(Storage(finished)):
        scores += pq.read_table(manifest.stages["score"].uri).column("score").to_pylist()
    return {
        "generate": {"images": 1, "until_accepted": 2, "max_images": 5},
        "score": {"min_score": statistics.median(scores), "keep_best": None},
    }


LAST_BITS = ("logprob", "ppl")
"""Columns whose last bits depend on the batch in which an image was drawn, unlike its tokens."""


def published(config: RunConfig) -> dict[str, Any]:
    """Everything that a run has published, by path: the bytes of images and rejects, and the rows
    of the metadata without `LAST_BITS`.
    """
    found: dict[str, Any] = contents(Path(config.output), "data", "rejects")
    for path in found:
        if path.startswith("data/") and path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(found[path]))
            found[path] = table.drop_columns(LAST_BITS).to_pylist()
    return found


@contextmanager
def counting_images(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The ids of the images that are drawn in a block."""
    candidates = importlib.import_module("tasks.candidates")
    drawn: list[str] = []
    draw = candidates.draw_candidates

    def watch(*arguments: Any, **named: Any) -> Any:
        records, rejects = draw(*arguments, **named)
        drawn.extend(row.image_id for row in records)
        return records, rejects

    with patch.context() as inner:
        inner.setattr(candidates, "draw_candidates", watch)
        yield drawn


@contextmanager
def killed_after(writes: int | None, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """End what is done in a block with `Killed` before a stage writes its artifact.

    Args:
        writes: artifacts that are written before; None never ends it.
        patch: of the test.
    """
    left = writes
    write = Storage.write_bytes

    def count(storage: Storage, path: str, content: bytes, *more: Any) -> None:
        nonlocal left
        if left is not None and path.startswith("stages/"):
            if left == 0:
                raise Killed
            left -= 1
        write(storage, path, content, *more)

    with patch.context() as inner:
        inner.setattr(Storage, "write_bytes", count)
        yield
