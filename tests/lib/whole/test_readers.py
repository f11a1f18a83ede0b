"""The tools that people use read every form of a dataset, one that has grown by other columns.

The first table has a column `theme`; the second, of another program, has columns `weight` and
`theme` as large strings, and prompts of another language. So shards have different columns, and
some are empty in some shards.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import duckdb
import fsspec
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from webdataset.gopen import gopen_schemes

from rudalle_lib.checks.audit import audit_output, reopen_faulty
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.dataset.reader import PublishedImages
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, finished_below
from tests.support.s3_server import S3Server

FORMS = ("files", "webdataset", "parquet", "merged webdataset", "merged parquet")
"""Values of `publish.format`; in merged forms, data files hold images of several shards."""

ROWS_PER_FILE = 4
SPLITS = {"train": 0.6, "validation": 0.4}
SECOND = {
    "prompt": ["белый круг", "a blue cross", "серый крест"],
    "weight": [0.5, None, 2.5],
    "theme": ["x", "y", None],
}
ON_S3 = [
    (("files", False), True),
    (("files", True), True),
    (("webdataset", False), False),
    (("webdataset", True), False),
    (("parquet", False), False),
    (("parquet", True), True),
    (("merged webdataset", True), False),
    (("merged parquet", False), True),
]
"""Forms, with splits or not, and whether they are streamed.

From S3 `datasets` 5 reads image files only streaming, and tars only without (docs/output.md).
"""

Rows = list[dict[str, Any]]


LOADER = """
import json
import sys

import webdataset
from torch.utils.data import DataLoader

samples = webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode("pil")
found = DataLoader(samples, batch_size=None, num_workers=2)
print(json.dumps(sorted([one["json"]["image_id"], one["txt"], one["png"].size] for one in found)))
"""
"""A program of its own: it forks, which the threads of other tests do not survive."""


def only(*forms: str) -> pytest.MarkDecorator:
    """Only datasets of some forms, with splits and without."""
    cases = [(form, split) for form in forms for split in (False, True)]
    return pytest.mark.parametrize("config", cases, indirect=True)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run that has grown by a second table."""
    folder = tmp_path_factory.mktemp("readers")
    config = finished_below(folder)
    columns = {**SECOND, "theme": pa.array(SECOND["theme"], pa.large_string())}
    pq.write_table(pa.table(columns), folder / "second.parquet")
    prompts = config.prompts.model_copy(update={"uri": str(folder / "second.parquet")})
    grown = config.model_copy(update={"prompts": prompts})
    finish(grown)
    return grown


@pytest.fixture(scope="module", params=[(form, split) for form in FORMS for split in (False, True)])
def config(request: pytest.FixtureRequest, grown: RunConfig) -> RunConfig:
    """The dataset in one form, with splits or without."""
    name, split = request.param
    form, splits = name.removeprefix("merged "), SPLITS if split else None
    if form == "files" and not split:
        return grown
    output = f"{grown.output}-{name.replace(' ', '-')}-{split}"
    rows = ROWS_PER_FILE if form != name else None
    changes = {"format": form, "splits": splits, "rows_per_file": rows}
    publish = grown.publish.model_copy(update=changes)
    config = grown.model_copy(update={"publish": publish, "output": output})
    if not Path(output).exists():
        shutil.copytree(grown.output, output)
        finish(config)
    return config


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[str]:
    """A cache for `datasets`; without progress bars."""
    datasets.disable_progress_bars()
    yield str(tmp_path / "cache")
    datasets.enable_progress_bars()


def data_folder(config: RunConfig) -> str:
    """The folder of the data files that the card names."""
    if config.publish.rows_per_file is not None:
        return "data/merged"
    return f"data/{'images' if config.publish.format == 'files' else config.publish.format}"


def splits_of(config: RunConfig) -> list[str]:
    return sorted(config.publish.splits or {"train": 1.0})


def check_rows(config: RunConfig, rows: Rows, images: list[Any], split: str | None = None) -> None:
    """The rows and images that a reader found are those of the dataset, or of a split of it."""
    expected = read_images(config.output)
    if split is not None and config.publish.splits:
        expected = expected[expected["split"] == split]
    assert [row["image_id"] for row in rows] == list(expected.index)
    reader = PublishedImages(Storage(config.output))
    for row, image, (name, other) in zip(rows, images, expected.iterrows(), strict=True):
        assert row["text"] == other.text and row["score"] == pytest.approx(other.score)
        for column in ("theme", "weight", "translator"):
            found, wanted = row[column], getattr(other, column)
            assert (found is None and pd.isna(wanted)) or found == wanted, (name, column)
        with Image.open(io.BytesIO(reader.read(other.path, str(name)))) as original:
            assert (np.asarray(image) == np.asarray(original)).all()


def rows_of(config: RunConfig, samples: Rows) -> tuple[Rows, list[Any]]:
    """The metadata and the images of samples that `datasets` loaded."""
    if config.publish.format == "webdataset":
        return [sample["json"] for sample in samples], [sample["png"] for sample in samples]
    return samples, [sample["image"] for sample in samples]


# --- datasets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_loads_the_folder(config: RunConfig, cache: str, streaming: bool) -> None:
    loaded = datasets.load_dataset(config.output, cache_dir=cache, streaming=streaming)
    assert sorted(loaded) == splits_of(config)
    for split, part in loaded.items():
        check_rows(config, *rows_of(config, list(part)), split)


def test_the_features_of_the_card_are_those_that_are_loaded(config: RunConfig, cache: str) -> None:
    declared = datasets.load_dataset_builder(config.output, cache_dir=cache).info
    part = datasets.load_dataset(config.output, cache_dir=cache, split="train")
    assert part.features == declared.features
    columns = part.features["json"] if config.publish.format == "webdataset" else part.features
    assert columns["weight"].dtype == "float64" and columns["theme"].dtype == "string"
    assert columns["translator"].dtype == "string"
    kept = declared.splits["train"].num_examples
    assert len(part) == kept and declared.dataset_size > 0


@pytest.mark.parametrize(("config", "streaming"), ON_S3, indirect=["config"])
def test_datasets_loads_from_s3(
    config: RunConfig, s3_server: S3Server, s3_url: str, cache: str, streaming: bool
) -> None:
    form = config.publish.format
    storage = upload(config, s3_server, s3_url)
    builder = {"files": "imagefolder"}.get(form, form)
    ending = {"files": "**", "parquet": "*.parquet", "webdataset": "*.tar"}[form]
    folder = f"{s3_url}/{data_folder(config)}"
    for split in splits_of(config):
        below = f"{folder}/{split}" if config.publish.splits else folder
        part = datasets.load_dataset(
            builder,
            data_files=f"{below}/{ending}",
            features=datasets.load_dataset_builder(config.output, cache_dir=cache).info.features,
            storage_options=storage,
            cache_dir=cache,
            streaming=streaming,
            split="train",
        )
        check_rows(config, *rows_of(config, list(part)), split)


def upload(config: RunConfig, server: S3Server, url: str) -> dict[str, str]:
    """Copy a dataset to S3, and return the credentials as options of fsspec."""
    storage = {
        "key": server.access_key,
        "secret": server.secret_key,
        "endpoint_url": server.endpoint,
    }
    fsspec.filesystem("s3", **storage).put(f"{config.output}/data", f"{url}/data", recursive=True)
    return storage


# --- others --------------------------------------------------------------------------------------


@only("webdataset", "merged webdataset")
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves files open
def test_webdataset_streams_from_s3(
    config: RunConfig, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("s3", **upload(config, s3_server, s3_url))
    monkeypatch.setitem(gopen_schemes, "s3", lambda url, mode, bufsize: files.open(url, mode))
    tars = sorted(f"s3://{path}" for path in files.glob(f"{s3_url}/{data_folder(config)}/**/*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    found = {sample["json"]["image_id"]: sample for sample in samples}
    assert found.keys() == set(read_images(config.output).index)
    assert all(sample["png"].size == (sample["json"]["width"],) * 2 for sample in samples)


@only("webdataset", "merged webdataset")
def test_webdataset_and_a_loader_with_two_workers(config: RunConfig) -> None:
    files = sorted(map(str, Path(config.output, data_folder(config)).rglob("*.tar")))
    assert len(files) > 2
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *files], check=True, capture_output=True, timeout=120
    )
    expected = read_images(config.output)
    assert json.loads(done.stdout) == [
        [name, row.text, [row.width, row.height]] for name, row in expected.sort_index().iterrows()
    ]


@only("webdataset", "merged webdataset")
def test_every_key_is_in_the_json_and_no_number_that_json_does_not_have(config: RunConfig) -> None:

    for path in Path(config.output, data_folder(config)).rglob("*.tar"):
        rows = read_json(path)
        assert rows and all(row.keys() == rows[0].keys() >= {"translator"} for row in rows)


def read_json(path: Path) -> Rows:
    """The metadata in a tar, by a parser of nothing but JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    with tarfile.open(path) as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
        contents = [file.read() for file in files if file is not None]
    return [json.loads(content, parse_constant=refuse) for content in contents]


def test_duckdb_polars_and_pandas_read_the_metadata(config: RunConfig) -> None:
    files = f"{config.output}/data/metadata/*.parquet"
    expected = read_images(config.output)
    query = f"from read_parquet('{files}', union_by_name=true) order by shard, image_id"
    with duckdb.connect() as database:
        select = f"select image_id, score, weight, theme {query}"
        by_duckdb = database.execute(select).fetchall()
    ordered = expected.reset_index().sort_values(["shard", "image_id"])
    assert [row[0] for row in by_duckdb] == list(ordered.image_id)
    assert [row[1] for row in by_duckdb] == pytest.approx(list(ordered.score))
    assert sum(row[2] is None for row in by_duckdb) == ordered.weight.isna().sum()
    last = sorted(Path(config.output, "data/metadata").glob("*.parquet"))[-1]
    columns = {**polars.read_parquet_schema(last)}
    by_polars = polars.scan_parquet(files, schema=columns, missing_columns="insert").collect()
    assert by_polars["image_id"].to_list() == list(expected.index)
    assert by_polars["weight"].null_count() == expected.weight.isna().sum()
    by_pandas = pd.concat(map(pd.read_parquet, sorted(Path(config.output).glob("data/metadata/*"))))
    assert list(by_pandas.image_id) == list(expected.index)


@only("files")
def test_a_plain_folder_of_images_finds_its_metadata(config: RunConfig, cache: str) -> None:
    """As after `cp -r data/images`, without the card."""
    folder = f"{config.output}/data/images"
    loaded = datasets.load_dataset("imagefolder", data_dir=folder, cache_dir=cache)
    assert sorted(loaded) == splits_of(config)
    for split, part in loaded.items():
        check_rows(config, *rows_of(config, list(part)), split)


# --- splits --------------------------------------------------------------------------------------


def test_no_prompt_is_in_two_splits_and_the_dataset_is_intact(config: RunConfig) -> None:
    assert audit_output(Storage(config.output)).faults == []
    frame = read_images(config.output)
    if not config.publish.splits:
        assert "split" not in frame.columns
        return
    assert (frame.groupby("text")["split"].nunique() == 1).all()
    assert set(frame["split"]) == set(SPLITS)
    assert all(f"/{row.split}/" in str(row.path) for row in frame.itertuples())


def test_splits_that_are_removed_leave_no_file(grown: RunConfig, tmp_path: Path) -> None:
    """All files are those of a dataset that never had splits."""
    output = str(tmp_path / "out")
    shutil.copytree(grown.output, output)
    for form, splits in (("files", SPLITS), ("parquet", SPLITS), ("files", None)):
        publish = grown.publish.model_copy(update={"format": form, "splits": splits})
        finish(grown.model_copy(update={"publish": publish, "output": output}))
        assert audit_output(Storage(output)).faults == []
        folders = {path.parent.name for path in Path(output, "data").rglob("train")}
        assert folders == ({"images" if form == "files" else form} if splits else set())
    data = [path for path in Storage(grown.output).list() if path.startswith("data/")]
    for path in data:
        assert Storage(output).read_bytes(path) == Storage(grown.output).read_bytes(path)
    assert [path for path in Storage(output).list() if path.startswith("data/")] == data


def test_a_damaged_table_of_images_is_found_and_made_again(
    grown: RunConfig, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path / "out"))
    shutil.copytree(grown.output, storage.url())
    path = "data/images/metadata.parquet"
    before = storage.read_bytes(path)
    storage.write_bytes(path, before[:-9])
    (fault,) = audit_output(storage).faults
    assert (fault.kind, fault.path) == ("damaged", path)
    reopen_faulty(storage, audit_output(storage), 60)
    finish(grown.model_copy(update={"output": storage.url()}))
    assert storage.read_bytes(path) == before
