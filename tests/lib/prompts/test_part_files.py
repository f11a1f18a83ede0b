"""A table may be a folder of part files or a pattern, on any storage; row numbers go on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import PromptError, StorageError
from rudalle_lib.prompts.part_files import find_parts
from rudalle_lib.prompts.plan import plan_run, read_plan, read_shard, read_tables
from rudalle_lib.prompts.rows import read_prompts
from rudalle_lib.schema.records import Overrides, Prompt, RejectRecord
from rudalle_lib.storage.storage import Storage
from tests.support.prompt_tables import read_accepted


def parquet(**columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def write(storage: Storage, files: Mapping[str, bytes | str]) -> str:
    """Write files below the folder `t`, and return its URL."""
    for name, content in files.items():
        storage.write_bytes(
            f"t/{name}", content if isinstance(content, bytes) else content.encode()
        )
    return storage.url("t")


def texts(url: str, **options: Any) -> list[str]:
    return [row.text for row in read_accepted(url, **options)]


SPARK = {
    "_SUCCESS": b"",
    "._SUCCESS.crc": b"crc",
    ".part-00000-x.snappy.parquet.crc": b"crc",
    "part-00000-x.snappy.parquet": parquet(prompt=["a", "b"]),
    "part-00001-x.snappy.parquet": parquet(prompt=pa.array([], pa.string())),
    "part-00002-x.snappy.parquet": parquet(prompt=["c"]),
    "_temporary/0/part-00003.parquet": b"not finished",
    "notes.txt": b"about the table",
}


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_folder_of_part_files_is_one_table(storage: Storage, ending: str) -> None:
    assert texts(write(storage, SPARK) + ending) == ["a", "b", "c"]


def test_a_folder_may_be_called_like_a_file(storage: Storage) -> None:
    for name, content in SPARK.items():
        storage.write_bytes(f"prompts.parquet/{name}", content)
    assert texts(storage.url("prompts.parquet")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a", "b"]),
        ("p[12].csv", ["a", "b"]),
        ("p?.csv", ["a", "b"]),
        ("**/*.csv", ["a", "b", "c"]),
        ("sub*", ["c"]),
        ("sub/*.csv", ["c"]),
        ("_*.csv", ["hidden"]),
    ],
)
def test_a_pattern_is_a_table(storage: Storage, pattern: str, expected: list[str]) -> None:
    files = {"p1.csv": "a", "p2.csv": "b", "sub/p3.csv": "c", "_h.csv": "hidden", "x.json": "[1]"}
    write(storage, {name: f"prompt\n{text}\n" for name, text in files.items()})
    assert texts(storage.url(f"t/{pattern}")) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path: Path) -> None:
    for name in ("a[1].csv", "b*.csv"):
        (tmp_path / name).write_text(f"prompt\n{name}\n")
    assert texts(str(tmp_path / "a[1].csv")) == ["a[1].csv"]
    assert texts(str(tmp_path / "b*.csv")) == ["b*.csv"]
    (tmp_path / "d[2]").mkdir()
    (tmp_path / "d[2]" / "p.csv").write_text("prompt\nx\n")
    assert texts(str(tmp_path / "d[2]")) == ["x"]


def test_relative_paths_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Storage(str(tmp_path)), SPARK)
    monkeypatch.chdir(tmp_path)
    assert texts("t") == texts("t/*.parquet") == texts("./t/") == ["a", "b", "c"]
    monkeypatch.chdir(tmp_path / "t")
    assert texts("*.parquet") == texts(".") == ["a", "b", "c"]
    assert texts(f"file://{tmp_path}/t/*.parquet") == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "csv.gz"])
def test_rows_are_named_by_their_numbers_in_their_part(storage: Storage, kind: str) -> None:
    import gzip

    def part(*prompts: str) -> bytes:
        if kind == "jsonl":
            content = "".join(f'{{"prompt": "{text}"}}\n' for text in prompts)
        else:
            content = "prompt,x\n" + "".join(f"{text},1\n" for text in prompts)
        return gzip.compress(content.encode()) if kind.endswith("gz") else content.encode()

    parts = [part("a", ""), b"", part("b"), part("", "c", "")]
    files = {f"part-{n}.{kind}": content for n, content in enumerate(parts)}
    url = write(storage, files)
    rows = list(read_prompts(url))
    numbers = [row.detail.split()[1] for row in rows if isinstance(row, RejectRecord)]
    assert [row.text for row in rows if isinstance(row, Prompt)] == ["a", "b", "c"]
    assert numbers == ["2", "1", "3"]
    details = [row.detail for row in rows if isinstance(row, RejectRecord)]
    assert f"row 2 of {url}/part-0.{kind}: " in details[0]
    assert f"row 3 of {url}/part-3.{kind}: " in details[2]
    assert len(list(read_prompts(url, limit=4))) == 4


def test_a_plan_of_parts_continues_when_parts_are_added(tmp_path: Path) -> None:
    storage, output = Storage(str(tmp_path)), Storage(str(tmp_path / "out"))
    url = write(storage, SPARK)
    config = RunConfig(output=output.url(), prompts={"uri": url, "shard_size": 2})  # type: ignore[arg-type]
    plan_run(config, output)
    write(storage, {"part-00009.parquet": parquet(prompt=["a", "d"], n=[1, 2])})
    assert plan_run(config, output).new_prompts == 1
    found = [[prompt.text for prompt in read_shard(output, spec)] for spec in read_plan(output)]
    assert found == [["a", "b"], ["c"], ["d"]]
    assert read_tables(output) == {url: {"rows": 5, "removed": 0}}


# --- columns -------------------------------------------------------------------------------------


def test_folders_named_like_columns_are_columns(storage: Storage) -> None:
    files = {
        "lang=ru/split=a%20b/part-0.parquet": parquet(prompt=["a"], x=[1]),
        "lang=en/split=__HIVE_DEFAULT_PARTITION__/part-0.parquet": parquet(prompt=["b"], x=[2]),
    }
    first, second = read_accepted(write(storage, files))
    assert (first.text, first.lang, first.extra) == ("b", "en", {"x": 2, "split": None})
    assert (second.text, second.lang, second.extra) == ("a", "ru", {"x": 1, "split": "a b"})


def test_a_folder_may_give_a_column_another_name(tmp_path: Path) -> None:
    url = write(Storage(str(tmp_path)), {"count=3/p.csv": "prompt\na\n"})
    (found,) = read_accepted(url, columns={"images": "count"})
    assert (found.overrides, found.extra) == (Overrides(images=3), {})


def test_parts_may_have_types_that_fit_together(tmp_path: Path) -> None:
    files = {
        "p0.parquet": parquet(prompt=["a"], n=pa.array([1], pa.int32()), t=["x"]),
        "p1.parquet": parquet(prompt=["b"], n=[2.5], t=pa.array(["y"], pa.large_string())),
        "p2.parquet": parquet(prompt=["c"], n=[2**40], u=[True]),
    }
    output = Storage(str(tmp_path / "out"))
    url = write(Storage(str(tmp_path)), files)
    plan_run(RunConfig(output=output.url(), prompts={"uri": url}), output)  # type: ignore[arg-type]
    (spec,) = read_plan(output)
    assert [dict(prompt.extra) for prompt in read_shard(output, spec)] == [
        {"n": 1.0, "t": "x", "u": None},
        {"n": 2.5, "t": "y", "u": None},
        {"n": float(2**40), "t": None, "u": True},
    ]


def test_parts_with_other_types_are_one_clear_error(tmp_path: Path) -> None:
    files = {
        "p0.parquet": parquet(prompt=["a"], n=[1]),
        "p1.parquet": parquet(prompt=["b"], n=["x"]),
    }
    url = write(Storage(str(tmp_path)), files)
    with pytest.raises(
        PromptError, match=r"column 'n' holds string in p1.parquet of .*int64 in p0"
    ):
        list(read_prompts(url))


def test_errors_name_the_part(tmp_path: Path) -> None:
    url = write(Storage(str(tmp_path)), {"p0.csv": "prompt\na\n", "p1.csv": "text\nb\n"})
    with pytest.raises(PromptError, match=r"^p1.csv: .* has no column 'prompt'"):
        list(read_prompts(url))
    url = write(
        Storage(str(tmp_path / "2")), {"p0.parquet": parquet(prompt=["a"]), "p1.parquet": b"PAR1"}
    )
    with pytest.raises(PromptError, match=r"t/p1.parquet is not readable as Parquet"):
        list(read_prompts(url))


# --- what is no table ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"notes.txt": "a", "b.md": "c"}, "has no prompt table: .* none of its 2 files is one"),
        ({"_SUCCESS": "", ".x.csv": "prompt\na\n"}, "has no prompt table: .*it has no files"),
        (
            {"a.csv": "prompt\na\n", "b.jsonl": "{}"},
            r"several formats, .csv, .jsonl; name .*\*.csv",
        ),
        ({"_delta_log/0.json": "{}", "a.parquet": b"x"}, "is a Delta table"),
    ],
)
def test_a_folder_that_is_no_table_is_one_clear_error(
    tmp_path: Path, files: dict[str, bytes | str], problem: str
) -> None:
    url = write(Storage(str(tmp_path)), files)
    with pytest.raises(PromptError, match=problem):
        list(read_prompts(url))


def test_a_pattern_that_matches_nothing_is_an_error(storage: Storage) -> None:
    with pytest.raises(PromptError, match=r"\*.csv has no prompt table"):
        list(read_prompts(storage.url("nothing/*.csv")))
    with pytest.raises(StorageError, match="it does not exist"):
        list(read_prompts(storage.url("nothing/p.csv")))
    with pytest.raises(PromptError, match="a wildcard before its first folder"):
        find_parts("s3://*/p.csv", "s3://*/p.csv")


def test_the_number_of_parts_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(Storage(str(tmp_path)), {f"p{n}.csv": "prompt\na\n" for n in range(20)})
    monkeypatch.setattr("rudalle_lib.prompts.part_files.MAX_PARTS", 10)
    with pytest.raises(PromptError, match="has more than 10 files"):
        list(read_prompts(url))
    monkeypatch.setattr("rudalle_lib.prompts.part_files.MAX_FILES", 5)
    with pytest.raises(PromptError, match="files"):
        list(read_prompts(url))


def test_links_that_lead_in_circles_are_not_followed(tmp_path: Path) -> None:
    url = write(Storage(str(tmp_path)), {"p.csv": "prompt\na\n"})
    os.symlink(url, Path(url, "again"))
    assert texts(url) == ["a"]


def test_bounds_of_the_environment_hold_for_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = write(Storage(str(tmp_path / "in")), {"p.csv": "prompt\na\n"})
    outside = write(Storage(str(tmp_path / "out")), {"p.csv": "prompt\nb\n"})
    monkeypatch.setenv("RUDALLE_ALLOW_INPUTS", str(tmp_path / "in"))
    assert texts(inside) == texts(inside + "/*.csv") == ["a"]
    for url in (outside, outside + "/*.csv", outside + "/nothing/*.csv"):
        with pytest.raises(StorageError, match="RUDALLE_ALLOW_INPUTS"):
            list(read_prompts(url))
    os.symlink(Path(outside, "p.csv"), Path(inside, "q.csv"))
    with pytest.raises(StorageError, match="RUDALLE_ALLOW_INPUTS"):
        list(read_prompts(inside))


# --- Hugging Face --------------------------------------------------------------------------------


class Hub(MemoryFileSystem):  # type: ignore[misc]
    """A stand-in for the file system of the Hugging Face Hub."""

    protocol = "hf"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("hf://").strip("/")

    def unstrip_protocol(self, name: str) -> str:
        return "hf://" + name.lstrip("/")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setitem(_registry, "hf", Hub)
    yield Hub()
    Hub.store.clear()


def test_tables_of_the_hub_are_read(hub: Hub) -> None:
    base = "datasets/owner/name/data"
    for number in range(2):
        hub.pipe_file(f"{base}/train-0000{number}.parquet", parquet(prompt=[f"p{number}"]))
    hub.pipe_file("datasets/owner/name/README.md", b"card")
    assert texts(f"hf://{base}/train-00000.parquet") == ["p0"]
    assert texts(f"hf://{base}") == texts(f"hf://{base}/*.parquet") == ["p0", "p1"]
    assert texts("hf://datasets/owner/name") == ["p0", "p1"]
