"""The front matter declares files, features, splits and sizes in the words of `datasets`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import yaml
from datasets import Features
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from rudalle_lib.report.front_matter import DataForm, SplitSize, render_front_matter

COLUMNS = pa.schema([
    ("image_id", pa.string()),
    ("score", pa.float32()),
    ("image", pa.int8()),
    ("source_file_name", pa.string()),
    ("when", pa.timestamp("us", "UTC")),
    ("'#: [x]\n---", pa.list_(pa.struct([("{a}", pa.map_(pa.string(), pa.int64()))]))),
])  # fmt: skip

ODD = "'#: [x]\n---"
SIZE = {"": SplitSize(3, 300)}


def front(form: str = "files", splits: Any = SIZE, image_format: str = "png") -> dict[str, Any]:
    text = render_front_matter(DataForm(form, image_format), COLUMNS, splits)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def features(**given: Any) -> Features:
    infos = DatasetInfosDict.from_dataset_card_data(DatasetCardData(**front(**given)))
    return infos["default"].features


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("files", ["image", "image_id", "score", "input_image", "source_file_name_", "when", ODD]),
        ("parquet", ["image", "image_id", "score", "input_image", "source_file_name", "when", ODD]),
        ("webdataset", ["__key__", "__url__", "txt", "json", "webp"]),
    ],
)
def test_datasets_reads_the_features_of_each_format(form: str, names: list[str]) -> None:
    found = features(form=form, image_format="webp")
    assert list(found) == names
    rows = found["json"] if form == "webdataset" else found
    assert rows["score"].dtype == "float32"
    assert rows["when"].dtype == ("string" if form == "webdataset" else "timestamp[us, tz=UTC]")
    assert rows[ODD].feature["{a}"].feature["value"].dtype == "int64"
    images = [name for name, item in found.items() if type(item).__name__ == "Image"]
    assert images == ["webp" if form == "webdataset" else "image"]


@pytest.mark.parametrize(
    ("form", "path"),
    [
        ("files", "data/images/**"),
        ("parquet", "data/parquet/*.parquet"),
        ("webdataset", "data/webdataset/*.tar"),
    ],
)
def test_without_splits_everything_is_train(form: str, path: str) -> None:
    found = front(form)
    configs = MetadataConfigs.from_dataset_card_data(DatasetCardData(**found))
    assert configs["default"]["data_files"] == [{"split": "train", "path": path}]
    sizes = {"num_bytes": 300, "num_examples": 3}
    assert found["dataset_info"]["splits"] == [{"name": "train", **sizes}]


def test_splits_have_their_own_files_and_sizes_and_empty_ones_are_left_out() -> None:
    sizes = {"test": SplitSize(0, 0), "train": SplitSize(2000, 7), "validation": SplitSize(5, 1)}
    found = front("webdataset", sizes)
    assert found["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/webdataset/train/*.tar"},
        {"split": "validation", "path": "data/webdataset/validation/*.tar"},
    ]
    assert [item["num_examples"] for item in found["dataset_info"]["splits"]] == [2000, 5]
    assert found["dataset_info"]["dataset_size"] == 8
    assert found["size_categories"] == ["1K<n<10K"]


def test_a_dataset_without_images_declares_its_features() -> None:
    found = front(splits={"": SplitSize(0, 0)})
    assert "splits" not in found["dataset_info"] and found["dataset_info"]["features"]
