"""Every form of a dataset is recognised and read; a folder without any of them is a clear error."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem, constants

from rudalle_lib.config.inputs import SourceConfig
from rudalle_lib.errors import DataError, StorageError
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.rows import BadRow, FoundRow, caption_of
from rudalle_lib.training.data.sources import read_rows, recognise
from tests.support.hub_server import TOKEN, Repository, hub_server
from tests.support.image_data import CAPTIONS, image_bytes, source, write_folder, write_tar
from tests.support.web_servers import web_server

CAPTIONED = [f"{caption} {number}" for number, caption in enumerate(CAPTIONS)]
"""The captions of the images of `write_folder`."""


def contents(config: SourceConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Captions and shapes of the images of a dataset, all of which can be used."""
    found = []
    for row in read_rows(config):
        assert isinstance(row, FoundRow), row
        caption = row.caption() if callable(row.caption) else row.caption
        content = row.image() if callable(row.image) else row.image
        found.append((caption_of(caption), tuple(decode_image(content).shape)))
    return found


SHAPES = [(caption, (3, 36, 40)) for caption in CAPTIONED]


def form_of(uri: object) -> str:
    return recognise(source(uri)).form


def write_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image_bytes(number))


# --- folders -----------------------------------------------------------------------------------


def test_a_folder_of_images_with_text_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    assert form_of(folder) == "folder"
    assert contents(source(folder)) == SHAPES


def test_images_in_folders_of_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "b", 2)
    write_folder(tmp_path / "a" / "c", 1, first=2)
    assert [caption for caption, _ in contents(source(tmp_path))] == [
        CAPTIONED[2],
        *CAPTIONED[:2],
    ]


def test_splits_of_a_folder_are_its_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 2)
    write_folder(tmp_path / "test", 1, first=2)
    assert [c for c, _ in contents(source(tmp_path))] == CAPTIONED[:2]
    assert [c for c, _ in contents(source(tmp_path, split="test"))] == CAPTIONED[2:3]
    with pytest.raises(DataError, match="no split 'mine'; expected it in a name of test, train"):
        list(read_rows(source(tmp_path, split="mine")))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_folder_of_images_with_a_metadata_file(tmp_path: Path, ending: str) -> None:
    names = [f"{number}.png" for number in range(5)]
    write_images(tmp_path, names)
    table = pd.DataFrame({"file_name": names, "text": CAPTIONED})
    path = tmp_path / f"metadata.{ending}"
    if ending == "csv":
        table.to_csv(path, index=False)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    assert form_of(tmp_path) == "metadata"
    assert contents(source(tmp_path)) == SHAPES


def test_images_of_metadata_must_be_in_its_folder(tmp_path: Path) -> None:
    write_images(tmp_path, ["secret.png", "mine/a.png"])
    rows = [("a.png", "a"), ("../secret.png", "b"), (str(tmp_path / "secret.png"), "c")]
    with (tmp_path / "mine" / "metadata.csv").open("w") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    first, *others = read_rows(source(tmp_path / "mine"))
    assert isinstance(first, FoundRow)
    assert all(isinstance(row, BadRow) and row.reason == "no_image" for row in others)
    assert len(others) == 2


# --- datasets of Hugging Face ------------------------------------------------------------------


@pytest.fixture
def hub_dataset(tmp_path: Path) -> datasets.Dataset:
    """A dataset with images in it, as people push to the hub."""
    write_images(tmp_path / "originals", [f"{number}.png" for number in range(5)])
    paths = [str(tmp_path / "originals" / f"{number}.png") for number in range(5)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": paths, "text": CAPTIONED}, features)


def embedded(dataset: datasets.Dataset) -> datasets.Dataset:
    """The dataset with the content of its image files, as `push_to_hub` makes it."""
    return dataset.with_format("arrow").map(
        datasets.table.embed_table_storage, batched=True, keep_in_memory=True
    )


def test_parquet_with_images_in_it_by_split(hub_dataset: datasets.Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    whole = embedded(hub_dataset)
    whole.select(range(3)).to_parquet(folder / "train-00000-of-00002.parquet")
    whole.select(range(3, 4)).to_parquet(folder / "train-00001-of-00002.parquet")
    whole.select(range(4, 5)).to_parquet(folder / "test-00000-of-00001.parquet")
    (tmp_path / "hub" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "hub" / "dataset_infos.json").write_text("{}")
    assert form_of(tmp_path / "hub") == "tables"
    assert contents(source(tmp_path / "hub")) == SHAPES[:4]
    assert contents(source(tmp_path / "hub", split="test")) == SHAPES[4:]
    assert contents(source(tmp_path / "hub", limit=2)) == SHAPES[:2]
    assert contents(source(tmp_path / "hub" / "data" / "train-*.parquet")) == SHAPES[:4]


@pytest.mark.parametrize("splits", [False, True])
def test_a_dataset_saved_to_disk(
    hub_dataset: datasets.Dataset, tmp_path: Path, splits: bool
) -> None:
    whole = embedded(hub_dataset).with_format(None)
    saved: Any = whole
    if splits:
        parts = {"train": whole.select(range(4)), "test": whole.select([4])}
        saved = datasets.DatasetDict(parts)
    saved.save_to_disk(str(tmp_path / "saved"))
    assert form_of(tmp_path / "saved") == "saved"
    assert contents(source(tmp_path / "saved")) == SHAPES[: 4 if splits else 5]


def test_webdataset(tmp_path: Path) -> None:
    members = []
    for number, caption in enumerate(CAPTIONED):
        members.append((f"{number}.png", image_bytes(number)))
        if number % 2:
            members.append((f"{number}.txt", caption.encode()))
        else:
            members.append((f"{number}.json", json.dumps({"caption": caption}).encode()))
    write_tar(tmp_path / "0.tar", members[:4])
    write_tar(tmp_path / "1.tar", members[4:])
    assert form_of(tmp_path) == "tars"
    assert contents(source(tmp_path)) == SHAPES
    assert contents(source(tmp_path / "1.tar")) == SHAPES[2:]


# --- tables ------------------------------------------------------------------------------------


def test_a_table_of_paths_and_urls(tmp_path: Path, web_images: str) -> None:
    write_images(tmp_path / "images", ["0.png"])
    write_images(tmp_path, ["absolute.png"])
    rows = [
        ("prompt", "picture"),
        (CAPTIONED[0], "images/0.png"),
        (CAPTIONED[1], str(tmp_path / "absolute.png")),
        (CAPTIONED[2], f"{web_images}/absolute.png"),
    ]
    with (tmp_path / "images.csv").open("w") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    assert form_of(tmp_path / "images.csv") == "tables"
    own = source(tmp_path / "images.csv", allow_private_hosts=True)
    assert contents(own) == SHAPES[:3]


def test_private_hosts_are_refused(tmp_path: Path, web_images: str) -> None:
    table = tmp_path / "images.csv"
    table.write_text(f"text,url\nкруг,{web_images}/absolute.png\n")
    (row,) = read_rows(source(table))
    assert isinstance(row, FoundRow) and callable(row.image)
    with pytest.raises(StorageError, match="private"):
        row.image()


@pytest.fixture
def web_images() -> Iterator[str]:
    """The URL of a web server of this machine with the image `absolute.png`."""
    with web_server() as server:
        server.files["/absolute.png"] = image_bytes(0)
        yield server.url


def test_columns_can_be_named(tmp_path: Path) -> None:
    table = pa.table({"описание": CAPTIONED[:2], "data": [image_bytes(0), image_bytes(1)]})
    pq.write_table(table, tmp_path / "t.parquet")
    named = source(tmp_path / "t.parquet", caption="описание", image="data")
    assert contents(named) == SHAPES[:2]
    with pytest.raises(DataError, match="no column image or picture or .* for the images; its"):
        list(read_rows(source(tmp_path / "t.parquet")))
    with pytest.raises(DataError, match="no column 'text' for the captions; its columns are опис"):
        list(read_rows(source(tmp_path / "t.parquet", image="data", caption="text")))


# --- on S3 -------------------------------------------------------------------------------------


def test_forms_on_s3(s3_url: str, tmp_path: Path) -> None:
    storage = Storage(s3_url)
    for path in sorted(write_folder(tmp_path / "mine").iterdir()):
        storage.write_bytes(f"mine/{path.name}", path.read_bytes())
    tar = write_tar(tmp_path / "a.tar", [("0.png", image_bytes(0)), ("0.txt", b"a")])
    storage.write_bytes("tars/a.tar", tar.read_bytes())
    table = pa.table({"text": ["b"], "image": [{"bytes": image_bytes(1), "path": None}]})
    pq.write_table(table, tmp_path / "t.parquet")
    storage.write_bytes("data/train.parquet", (tmp_path / "t.parquet").read_bytes())
    storage.write_bytes("meta/metadata.csv", b"file_name,text\nx/0.png,c\n")
    storage.write_bytes("meta/x/0.png", image_bytes(0))
    assert contents(source(f"{s3_url}/mine")) == SHAPES
    one = (3, 36, 40)
    assert contents(source(f"{s3_url}/tars")) == [("a", one)]
    assert contents(source(f"{s3_url}/data")) == [("b", one)]
    assert contents(source(f"{s3_url}/data/*.parquet")) == [("b", one)]
    assert contents(source(f"{s3_url}/data/train.parquet")) == [("b", one)]
    assert contents(source(f"{s3_url}/meta")) == [("c", one)]


def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read through fsspec, from a server that answers as the hub does."""
    table = pa.table({"text": ["a"], "image": [{"bytes": image_bytes(1), "path": None}]})
    pq.write_table(table, tmp_path / "t.parquet")
    files = {"README.md": b"-", "data/train-00000-of-00001.parquet": b"", "data/test.parquet": b""}
    files = {name: b or (tmp_path / "t.parquet").read_bytes() for name, b in files.items()}
    with hub_server() as hub:
        hub.repositories["me/pics"] = Repository(False, {"main": files})
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        HfFileSystem.clear_instance_cache()
        try:
            (row,) = read_rows(source("hf://datasets/me/pics"))
            assert isinstance(row, FoundRow)
            assert (row.key, row.caption) == ("data/train-00000-of-00001.parquet, row 1", "a")
            assert row.image == image_bytes(1)
        finally:
            HfFileSystem.clear_instance_cache()


# --- none --------------------------------------------------------------------------------------


def test_what_is_no_dataset_is_an_error_that_lists_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"no dataset.*shards/\*\.json.*\.tar.*found notes\.md"):
        recognise(source(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found no files"):
        recognise(source(tmp_path / "empty"))
    with pytest.raises(StorageError, match="does not exist"):
        recognise(source(tmp_path / "missing"))


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path / ".hidden")
    write_folder(tmp_path / "_hidden")
    write_folder(tmp_path / "shown", 1)
    assert contents(source(tmp_path)) == SHAPES[:1]
