"""One run of a table with a column of every Arrow type, in every form: all that reads it agrees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.checks.replay import replay
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images, read_rejects
from rudalle_lib.prompts.column_types import UnstorableTypeError, cast, stored_type
from rudalle_lib.report.preview import choose_prompts
from rudalle_lib.schema.tables import same_values
from rudalle_lib.storage.storage import Storage
from tests.support.arrow_columns import COLUMNS
from tests.support.finished_run import finish, tiny_config

PROMPTS = ["красный круг", "", "синий крест"]
FORMS = ("files", "webdataset", "parquet")


def storable() -> dict[str, pa.Array]:
    """The columns that are not refused, as they are stored."""
    found = {}
    for name, column in COLUMNS.items():
        try:
            pq.write_table(pa.table({"x": column}), pa.BufferOutputStream())
            found[name] = cast(column, stored_type(column.type))
        except (UnstorableTypeError, pa.ArrowException, OSError):
            continue
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models and the table."""
    folder = tmp_path_factory.mktemp("columns")
    tiny_config(folder, str(folder / "out"))
    pq.write_table(pa.table({"prompt": PROMPTS, **storable()}), folder / "prompts.parquet")
    return folder


@pytest.fixture(scope="module", params=FORMS)
def config(request: pytest.FixtureRequest, folder: Path) -> RunConfig:
    """A finished run in a form; each shard has one prompt."""
    base = tiny_config(folder, str(folder / request.param)).model_dump()
    config = RunConfig.model_validate({
        **base,
        "prompts": {"uri": str(folder / "prompts.parquet"), "shard_size": 1},
        "generate": {"images": 1},
        "upscale": {"model": None},
        "publish": {"format": request.param},
    })  # fmt: skip
    run = finish(config)
    assert (run.totals.kept, run.totals.rejected) == (2, {"empty_prompt": 1})
    return config


def test_the_dataset_is_intact_and_images_can_be_replayed(config: RunConfig) -> None:
    storage = Storage(config.output)
    audit = audit_output(storage)
    assert (audit.faults, audit.notes) == ([], [])
    for name in read_images(config.output).index:
        assert replay(storage, str(name)).identical


def test_the_metadata_has_the_values_of_the_table(config: RunConfig) -> None:
    storage, expected = Storage(config.output), storable()
    assert len(expected) > 45
    paths = storage.list("data/metadata")
    rows = {
        storage.read_table(path).column("text")[0].as_py(): storage.read_table(path)
        for path in paths
    }
    for place in (0, 2):
        found = rows[PROMPTS[place]].select([*expected])
        wanted = pa.table({name: column.take([place]) for name, column in expected.items()})
        wanted = pa.table(wanted.columns, schema=found.schema)
        assert same_values(found, wanted)


def test_frames_and_the_gallery_can_be_read(config: RunConfig) -> None:
    images, rejects = read_images(config.output), read_rejects(config.output)
    assert set(storable()) <= set(images.columns) and len(images) == 2
    assert list(rejects.reason) == ["empty_prompt"]
    (chunk,) = Path(config.output, "gallery/data").iterdir()
    text = chunk.read_text("utf-8")
    entries = json.loads(text[text.index("(") + 1 : text.rindex(")")], parse_constant=pytest.fail)
    assert len(entries) == 3 and not re.search(r"\bb'", text)


def test_a_preview_samples_the_table(folder: Path, config: RunConfig) -> None:
    sample = choose_prompts(config.prompts, 1, 2)
    assert sorted(sample.chosen.column("text").to_pylist()) == sorted(filter(None, PROMPTS))
