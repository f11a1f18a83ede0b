"""`croissant.json` is valid, and `mlcroissant` loads the records of every form with it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.dataset.reader import PublishedImages
from rudalle_lib.report.croissant import render_croissant
from rudalle_lib.report.dataset_card import CardModel
from rudalle_lib.report.front_matter import DataForm, SplitSize
from rudalle_lib.schema.records import RunManifest, RunTotals
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, finished_below, in_form

pytestmark = pytest.mark.filterwarnings(
    "ignore:ConjunctiveGraph is deprecated:DeprecationWarning",
    "ignore:The inplace keyword in DataFrame.reset_index is deprecated:DeprecationWarning",
)
"""mlcroissant uses rdflib and pandas as they no longer want it."""

SPLITS = {"train": 0.6, "validation": 0.4}
FORMS = [
    ("files", {}),
    ("files", {"splits": SPLITS}),
    ("files", {"image_format": "jpeg"}),
    ("webdataset", {}),
    ("parquet", {}),
    ("parquet", {"splits": SPLITS}),
    ("parquet", {"rows_per_file": 3, "splits": SPLITS}),
    ("webdataset", {"rows_per_file": 3}),
]
MODELS = [CardModel("generate", "demo-dalle", "Apache-2.0", "0123")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run with image files."""
    return finished_below(tmp_path_factory.mktemp("croissant"))


@pytest.mark.parametrize(("form", "changes"), FORMS)
def test_mlcroissant_loads_the_records(
    finished: RunConfig, tmp_path: Path, form: str, changes: dict[str, Any]
) -> None:
    config = in_form(finished, tmp_path / "out", format=form, **changes)
    finish(config)
    dataset = mlcroissant.Dataset(f"{config.output}/croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    assert not any("license" in warning for warning in dataset.metadata.ctx.issues.warnings)
    (licence,) = dataset.metadata.license
    card = Path(config.output, "README.md").read_text("utf-8")
    assert "Apache-2.0" in licence and all(f"{one}." in card for one in licence[:-1].split(". "))
    records = [plain(record) for record in dataset.records("images")]
    found = {record["images/image_id"]: record for record in records}
    expected = read_images(config.output)
    assert found.keys() == set(expected.index)
    reader = PublishedImages(Storage(config.output))
    for name, row in expected.iterrows():
        record = found[str(name)]
        assert record["images/text"] == row.text
        assert record["images/score"] == pytest.approx(row.score)
        assert (record["images/theme"] is None) == pd.isna(row.theme)
        if "images/image" in record:
            with Image.open(io.BytesIO(reader.read(row.path, str(name)))) as original:
                assert (np.asarray(record["images/image"]) == np.asarray(original)).all()
    assert ("images/image" in next(iter(found.values()))) == (form == "parquet")


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record with texts as texts; `mlcroissant` gives their UTF-8."""
    decoded = {name: v.decode() for name, v in record.items() if isinstance(v, bytes)}
    return {**record, **decoded}


def test_columns_of_any_name_and_type_make_a_valid_description(tmp_path: Path) -> None:
    columns = pa.schema([
        pa.field("image_id", pa.string(), metadata={"description": "the id"}),
        ("score", pa.float32()),
        ("image", pa.int8()),
        ("when", pa.timestamp("us", "UTC")),
        ("tags", pa.list_(pa.string())),
        ("raw", pa.binary()),
        ("'#: [x]/ ю\n---", pa.int64()),
        ("nested", pa.struct([("a", pa.int64())])),
    ])  # fmt: skip
    run = RunManifest('a: "b" <c>', {}, "d", {}, {}, 1, RunTotals(), "", "2026-01-02T03:04:05")
    for form in ("files", "webdataset", "parquet"):
        content = render_croissant(
            run, MODELS, [], columns, {"": SplitSize(0, 0)}, DataForm(form, "png")
        )
        path = tmp_path / form / "croissant.json"
        path.parent.mkdir()
        path.write_bytes(content)
        dataset = mlcroissant.Dataset(str(path))
        assert not dataset.metadata.ctx.issues.errors
        value = json.loads(content)
        assert value["datePublished"] == "2026-01-02" and value["name"] == run.name
        names = [field["name"] for field in value["recordSet"][0]["field"]]
        assert "raw" not in names and "nested" not in names and "'#: [x]/ ю\n---" in names
        assert ("input_image" in names) == (form != "webdataset")
