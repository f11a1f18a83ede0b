"""What is shared: the same files for any size of shards, and few of them for many images."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images, read_rejects
from rudalle_lib.dataset.manifests import read_run_manifest, write_run_manifest
from rudalle_lib.errors import DamagedError, StorageError
from rudalle_lib.sharing.contents import SharedFile, is_shared_data, read_contents
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish

HUB_FILES_PER_FOLDER = 10_000


def content(file: SharedFile) -> bytes:
    stream = io.BytesIO()
    file.write(stream)
    return stream.getvalue()


def test_all_images_metadata_and_rejects_are_in_it(config: RunConfig) -> None:
    files = {file.path: file for file in read_contents(Storage(config.output), 3).data_files()}
    assert all(map(is_shared_data, files)) and "data/metadata" in str(files)
    tables = {path: pq.read_table(io.BytesIO(content(file))) for path, file in files.items()}
    images, frame = read_images(config.output), read_images(config.output)
    found = [table for path, table in tables.items() if path.startswith("data/merged/")]
    assert [table.num_rows for table in found] == [3, 3, 2]
    ids = [name for table in found for name in table.column("image_id").to_pylist()]
    assert ids == list(frame.index)
    for path, table in tables.items():
        if path.startswith("data/merged/"):
            assert set(table.column("path").to_pylist()) == {path}
            described = tables[path.replace("merged", "metadata")]
            assert described.equals(table.select(described.column_names))
    rejects = sum(table.num_rows for path, table in tables.items() if "rejects" in path)
    assert rejects == len(read_rejects(config.output)) and len(images) == 8


def test_the_size_of_shards_changes_no_byte(config: RunConfig, tmp_path: Path) -> None:
    """Texts are scored one by one: scores of other batches differ in the last bit."""
    found = []
    for size in (2, 5):
        prompts = config.prompts.model_copy(update={"shard_size": size})
        score = config.score.model_copy(update={"batch_size": 1})
        output = str(tmp_path / str(size))
        finish(config.model_copy(update={"prompts": prompts, "score": score, "output": output}))
        files = read_contents(Storage(output), 3).data_files()
        found.append({f.path: content(f) for f in files if "rejects" not in f.path})
    assert found[0] == found[1] and len(found[0]) == 6


def test_a_million_prompts_are_few_files(config: RunConfig) -> None:
    """Eight images of each: no folder has more files than the hub takes, however small shards are.

    Sixty shards of a hundred images have the same metadata, and stand for all.
    """
    storage = Storage(config.output)
    contents = read_contents(storage)
    first, count = contents.manifests[0], 100
    table = storage.read_table(first.metadata.path)
    table = table.take([row % table.num_rows for row in range(count)])
    storage.write_table("data/metadata/99999.0123456789abcdef.parquet", table)
    path = replace(first.metadata, path="data/metadata/99999.0123456789abcdef.parquet")
    shards = [replace(first, index=index, kept=count, metadata=path) for index in range(60)]
    files = [file.path for file in replace(contents, manifests=shards).data_files()]
    storage.delete(path.path)
    for folder, number in Counter(one.rpartition("/")[0] for one in files).items():
        assert number * 8 * 10**6 / (count * len(shards)) < HUB_FILES_PER_FOLDER, folder
    assert len(files) >= 4


def test_an_image_that_has_changed_is_not_shared(config: RunConfig, tmp_path: Path) -> None:
    storage = Storage(config.output)
    path = read_images(config.output)["path"].iloc[0]
    before = storage.read_bytes(path)
    storage.write_bytes(path, before[:-1])
    try:
        file = next(iter(read_contents(storage).data_files()))
        with pytest.raises(DamagedError, match="rudalle-flows verify"):
            content(file)
    finally:
        storage.write_bytes(path, before)


def test_a_report_of_other_shards_and_an_output_without_run_are_errors(
    config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="no finished run"):
        read_contents(Storage(str(tmp_path)))
    storage = Storage(config.output)
    run = read_run_manifest(storage)
    assert run is not None
    totals = replace(run.totals, kept=run.totals.kept - 1)
    write_run_manifest(storage, replace(run, totals=totals))
    try:
        with pytest.raises(StorageError, match="Push when it has finished"):
            read_contents(storage)
    finally:
        write_run_manifest(storage, run)
