"""A column of any Arrow type is published in all three forms as it was, or refused at the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features
from hypothesis import HealthCheck, assume, given, settings

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import PromptsConfig, PublishConfig
from rudalle_lib.dataset import frames
from rudalle_lib.dataset.writer import with_extras, write_shard
from rudalle_lib.errors import PromptError
from rudalle_lib.prompts.column_types import (
    UnstorableTypeError,
    cast,
    stored_type,
    unreadable_rows,
)
from rudalle_lib.prompts.plan import plan_run, read_extras, read_plan, read_shard
from rudalle_lib.prompts.rows import plan_fingerprint
from rudalle_lib.schema import tables
from rudalle_lib.schema.features import features_of, loadable
from rudalle_lib.schema.tables import same_values
from rudalle_lib.storage.storage import Storage
from tests.support.arrow_columns import COLUMNS, columns
from tests.support.image_records import VERSION, images

ROWS = 3
FORMS: tuple[Literal["files", "webdataset", "parquet"], ...] = ("files", "webdataset", "parquet")


def planned(folder: Path, column: pa.Array) -> Storage | None:
    """An output in which a table with a column `x` is planned; None if it is no Parquet table."""
    table = folder / "p.parquet"
    prompts = pa.array([f"p{number}" for number in range(len(column))])
    try:
        pq.write_table(pa.table({"prompt": prompts, "prompt_id": prompts, "x": column}), table)
        pq.read_table(table)
    except (pa.ArrowException, OSError):
        return None
    output = Storage(str(folder / "out"))
    prompts_config = PromptsConfig(uri=str(table))
    plan_run(RunConfig(output=output.url(), prompts=prompts_config), output)
    return output


def check_published(storage: Storage, source: pa.Array) -> None:
    """The planned rows have the values of the source in every form, to every reader."""
    (spec,) = read_plan(storage)
    prompts = read_shard(storage, spec)
    assert prompts and all(set(prompt.extra) == {"x"} for prompt in prompts)
    places = [int(prompt.prompt_id[1:]) for prompt in prompts]
    wanted = source.take(pa.array(places)) if len(places) < len(source) else source
    wanted = pa.chunked_array([cast(wanted, stored_type(wanted.type))])
    extras = read_extras(storage, spec)
    for form in FORMS:
        output = Storage(storage.url(form))
        given_images = images(*((prompt.prompt_id, 0) for prompt in prompts))
        written = write_shard(output, 0, VERSION, given_images, PublishConfig(format=form), extras)
        metadata = output.read_table(written.metadata.path)
        assert tables._same_column(metadata.column("x"), wanted)
        assert same_values(metadata, with_extras(metadata.drop_columns("x"), extras))
        assert plan_fingerprint(metadata)
        frame = frames._frame([metadata], metadata.schema)
        assert len(frame) == len(prompts) and "x" in frame
        if form == "files":
            continue
        (archived,) = written.archives
        path = Path(output.url(archived.path))
        if form == "parquet":
            archive = pq.read_table(path)
            assert same_values(archive.select(["x"]), loadable(metadata.select(["x"])))
            assert Features.from_arrow_schema(archive.schema)["x"] == declared(archive.schema)
        if form == "webdataset":
            rows = read_json_of_tar(path)
            assert [row["image_id"] for row in rows] == metadata.column("image_id").to_pylist()
            assert "b'" not in json.dumps([row["x"] for row in rows])


def declared(columns: pa.Schema) -> Any:
    """The feature of column `x` that a card declares."""
    return Features._from_yaml_list(features_of(columns))["x"]


def read_json_of_tar(path: Path) -> list[dict[str, Any]]:
    import tarfile

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    with tarfile.open(path) as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
        assert None not in files
        contents = [file.read() for file in files if file is not None]
    return [json.loads(content, parse_constant=refuse) for content in contents]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_type_is_published_or_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    column = COLUMNS[name]
    try:
        storage = planned(tmp_path, column)
    except PromptError as error:
        assert name in REFUSED and "The column 'x' of" in str(error)
        assert not (tmp_path / "out" / "plan").exists()
        return
    if storage is None:  # no Parquet table has this type
        return
    check_published(storage, pq.read_table(tmp_path / "p.parquet").column("x").combine_chunks())


REFUSED = {
    "interval": "cannot be stored",
    "fixed binary 0": "size 0",
    "fixed list 0": "size 0",
    "timestamp unknown zone": "unknown time zone",
    "struct without fields": "without fields",
    "struct with one name twice": "two fields of one name",
    "sparse union": "cannot be stored",
    "dense union": "cannot be stored",
}


@pytest.mark.parametrize("name", COLUMNS)
def test_only_types_that_cannot_be_stored_are_refused(name: str) -> None:
    column = COLUMNS[name]
    if name in REFUSED:
        with pytest.raises(UnstorableTypeError, match=REFUSED[name]):
            stored_type(column.type)
    else:
        kind = stored_type(column.type)
        assert stored_type(kind) == kind
        assert cast(column, kind).type == kind
        assert unreadable_rows(pa.chunked_array([cast(column, kind)])) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(column=columns())
def test_any_nested_type_is_published_or_refused(
    tmp_path_factory: pytest.TempPathFactory, column: pa.Array
) -> None:
    folder = tmp_path_factory.mktemp("any")
    try:
        storage = planned(folder, column)
    except PromptError as error:
        assert "The column 'x' of" in str(error)
        return
    assume(storage is not None and read_plan(storage))
    assert storage is not None
    check_published(storage, pq.read_table(folder / "p.parquet").column("x").combine_chunks())


@pytest.mark.parametrize(
    ("kind", "far"),
    [
        (pa.date32(), 2**30),
        (pa.timestamp("ms"), 2**60),
        (pa.duration("s"), 2**60),
        (pa.timestamp("ms", "UTC"), -(2**60)),
    ],
)
def test_a_value_that_python_cannot_hold_rejects_its_row(
    tmp_path: Path, kind: pa.DataType, far: int
) -> None:
    width = pa.int32() if kind == pa.date32() else pa.int64()
    column = pa.array([1, far, None], width).cast(kind)
    output = tmp_path / "out"
    table = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "x": column}), table)
    config = RunConfig(output=str(output), prompts=PromptsConfig(uri=str(table)))
    plan = plan_run(config, Storage(str(output)))
    assert dict(plan.rejected) == {"bad_type": 1} and plan.prompts == 2


def test_types_nested_too_deep_or_too_wide_are_refused() -> None:
    deep: pa.DataType = pa.int8()
    for _ in range(30):
        deep = pa.list_(deep)
    with pytest.raises(UnstorableTypeError, match="nested deeper than 20"):
        stored_type(deep)
    wide = pa.struct([(f"f{number}", pa.int8()) for number in range(2000)])
    with pytest.raises(UnstorableTypeError, match="more than 1,000 fields"):
        stored_type(wide)
