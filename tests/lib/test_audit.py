"""The audit finds whatever is not as it was published, names it, and lets it be made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows.cli import app
from rudalle_lib import layout
from rudalle_lib.audit import audit_output, reopen_faulty
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import StorageError
from rudalle_lib.faults import Audit
from rudalle_lib.manifest import read_shard_manifest, write_shard_manifest
from rudalle_lib.rescoring import rescore_sample
from rudalle_lib.shards import data_file
from rudalle_lib.storage import Storage
from tests.finished_run import finish, finished_below

Damage = Callable[[Storage], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run that tests copy before they damage it."""
    return finished_below(tmp_path_factory.mktemp("audit"))


@pytest.fixture
def config(finished: RunConfig, tmp_path: Path) -> RunConfig:
    """The same run with an output of its own."""
    shutil.copytree(finished.output, tmp_path / "out")
    return finished.model_copy(update={"output": str(tmp_path / "out")})


def audited(storage: Storage, sample: int = 0) -> Audit:
    audit = audit_output(storage)
    if sample:
        rescore_sample(storage, audit, sample)
    return audit


def test_a_whole_output_has_no_fault_on_disk_and_on_s3(
    finished: RunConfig, output_url: str
) -> None:
    config = finished.model_copy(update={"output": output_url})
    finish(config)
    audit = audited(Storage(output_url), 64)
    assert audit.faults == [] and audit.notes == []
    expected = {"shards": 3, "plan files": 3, "prompts": 5, "pictures": 8, "pairs": 8}
    assert expected.items() <= audit.checked.items()
    assert audit.as_recorded == {0, 1, 2}


def first_picture(storage: Storage, index: int = 0) -> str:
    return storage.list(layout.images_folder(index))[0]


def flip(path: str | Callable[[Storage], str], at: float = 0.5) -> Damage:
    def damage(storage: Storage) -> None:
        name = path if isinstance(path, str) else path(storage)
        content = bytearray(storage.read_bytes(name))
        content[int(len(content) * at)] ^= 1
        storage.write_bytes(name, bytes(content))

    return damage


def cut(path: str | Callable[[Storage], str]) -> Damage:
    def damage(storage: Storage) -> None:
        name = path if isinstance(path, str) else path(storage)
        content = storage.read_bytes(name)
        storage.write_bytes(name, content[: len(content) // 2])

    return damage


def replaced(path: str | Callable[[Storage], str], by: str | Callable[[Storage], str]) -> Damage:
    def damage(storage: Storage) -> None:
        name, other = (item if isinstance(item, str) else item(storage) for item in (path, by))
        storage.write_bytes(name, storage.read_bytes(other))

    return damage


def gone(path: str | Callable[[Storage], str]) -> Damage:
    return lambda storage: storage.delete(path if isinstance(path, str) else path(storage))


def other_picture(storage: Storage) -> str:
    return first_picture(storage, 1)


DAMAGES: list[tuple[str, Damage, str]] = [
    ("damaged data/images/00000/", flip(first_picture), "a flipped picture"),
    ("damaged data/images/00000/", cut(first_picture), "a cut picture"),
    ("damaged data/images/00000/", replaced(first_picture, other_picture), "another picture"),
    ("missing data/images/00000/", gone(first_picture), "no picture"),
    ("damaged data/metadata/00000.parquet", flip("data/metadata/00000.parquet"), "flipped rows"),
    ("damaged data/metadata/00000.parquet", cut("data/metadata/00000.parquet"), "cut rows"),
    (
        "damaged data/metadata/00000.parquet",
        replaced("data/metadata/00000.parquet", "data/metadata/00001.parquet"),
        "rows of another shard",
    ),
    ("missing data/metadata/00000.parquet", gone("data/metadata/00000.parquet"), "no rows"),
    ("damaged rejects/00000.parquet", flip("rejects/00000.parquet"), "flipped rejects"),
    ("damaged shards/00000.json", flip("shards/00000.json"), "a flipped manifest"),
    ("damaged shards/00000.json", cut("shards/00000.json"), "a cut manifest"),
    ("unfinished shards/00000.json", gone("shards/00000.json"), "no manifest"),
    ("damaged stages/generate/00000.parquet", flip("stages/generate/00000.parquet"), "tokens"),
    ("damaged stages/decode/00000.parquet", cut("stages/decode/00000.parquet"), "cut drawings"),
    ("damaged stages/score/00000.parquet", flip("stages/score/00000.parquet", 0.9), "scores"),
    ("damaged run.json", flip("run.json"), "a flipped run.json"),
    (
        "orphan data/images/00000/stray.png",
        lambda storage: storage.write_bytes("data/images/00000/stray.png", b"x"),
        "a stray picture",
    ),
]


@pytest.mark.parametrize(
    ("expected", "damage"), [case[:2] for case in DAMAGES], ids=[case[2] for case in DAMAGES]
)
def test_damage_is_noticed_named_and_made_again(
    config: RunConfig, finished: RunConfig, expected: str, damage: Damage
) -> None:
    storage = Storage(config.output)
    damage(storage)
    audit = audited(storage)
    found = [f"{fault.kind} {fault.path}" for fault in audit.faults]
    assert any(item.startswith(expected) for item in found), found
    assert {fault.shard for fault in audit.faults} <= {0, None}
    reopen_faulty(storage, audit, 60)
    finish(config)
    assert audited(storage).faults == []
    for path in Storage(finished.output).list("data"):
        assert storage.read_bytes(path) == Storage(finished.output).read_bytes(path)


def rewrite(storage: Storage, change: Callable[[pa.Table], pa.Table]) -> None:
    """Forge the metadata of shard 0, seal, digest and all."""
    path = layout.metadata_path(0)
    content = storage.write_table(path, change(storage.read_table(path)))
    manifest = read_shard_manifest(storage, 0)
    assert manifest is not None
    write_shard_manifest(storage, replace(manifest, metadata=data_file(path, content)))


def with_column(name: str, values: Callable[[list[object]], list[object]]) -> Damage:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        new = pa.array(values(table.column(name).to_pylist()), table.schema.field(name).type)
        return table.set_column(place, table.schema.field(name), new)

    return lambda storage: rewrite(storage, change)


def exchange_pictures(storage: Storage) -> None:
    """The best pictures of two prompts change places, files, digests and all."""
    columns = ("path", "sha256", "bytes")
    table = storage.read_table(layout.metadata_path(0))
    assert table.column("prompt_id")[0] != table.column("prompt_id")[-1]

    def change(table: pa.Table) -> pa.Table:
        for name in columns:
            first, *rest, last = table.column(name).to_pylist()
            place = table.schema.get_field_index(name)
            new = pa.array([last, *rest, first], table.schema.field(name).type)
            table = table.set_column(place, table.schema.field(name), new)
        return table

    rewrite(storage, change)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("label", with_column("text", lambda texts: texts[::-1])),
        ("label", with_column("seed", lambda seeds: [seeds[0], *seeds[:-1]])),
        ("column", with_column("theme", lambda themes: ["other" for _ in themes])),
        ("column", lambda storage: rewrite(storage, lambda table: table.drop_columns(["rank"]))),
        ("duplicate", with_column("image_id", lambda ids: [ids[0], *ids[:-1]])),
        ("count", lambda storage: rewrite(storage, lambda table: table.slice(1))),
        ("score", with_column("score", lambda scores: [0.5, *scores[1:]])),
        ("label", exchange_pictures),
    ],
)
def test_rows_that_were_forged_with_their_digests_are_found(
    config: RunConfig, kind: str, damage: Damage
) -> None:
    storage = Storage(config.output)
    damage(storage)
    if kind == "score":
        assert audited(storage).faults == []
    found = audited(storage, 64).faults
    assert kind in {fault.kind for fault in found}
    assert {fault.shard for fault in found} == {0}


def test_a_plan_that_is_damaged_is_named_and_not_thrown_away(config: RunConfig) -> None:
    storage = Storage(config.output)
    flip("plan/00001.parquet")(storage)
    audit = audited(storage)
    assert [(fault.kind, fault.path) for fault in audit.faults][0] == (
        "damaged", "plan/00001.parquet",
    )  # fmt: skip
    assert reopen_faulty(storage, audit, 60) == []
    assert storage.exists("plan/00001.parquet")


def test_what_is_no_output_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no run in"):
        audit_output(Storage(str(tmp_path)))


def test_a_run_with_other_settings_that_has_not_ended_is_no_fault(config: RunConfig) -> None:
    storage = Storage(config.output)
    content = json.loads(storage.read_bytes("shards/00001.json"))
    assert content["stages"]["score"]["fingerprint"]
    manifest = read_shard_manifest(storage, 1)
    assert manifest is not None
    scored = replace(manifest.stages["score"], fingerprint="of other settings")
    write_shard_manifest(storage, replace(manifest, stages={**manifest.stages, "score": scored}))
    audit = audited(storage, 64)
    assert audit.faults == [] and "other settings than run.json" in audit.notes[0]


def call(output: str, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["verify", output, *arguments])
    return done.exit_code, " ".join(done.stdout.split())


def test_the_command_says_what_it_found_and_by_its_exit_code(config: RunConfig) -> None:
    code, said = call(config.output)
    assert code == 0 and "8 pictures" in said and "8 pairs" in said and "faults none" in said
    gone(first_picture)(Storage(config.output))
    code, said = call(config.output, "--sample", "0", "--repair")
    assert code == 1 and "1 missing" in said and "named, but not there" in said
    assert "1 shard reopened: run again" in said
    assert call(config.output, "--sample", "0")[0] == 1
    finish(config)
    assert call(config.output)[0] == 0


def test_what_is_damaged_on_s3_is_repaired_and_nothing_else_is_touched(
    finished: RunConfig, s3_url: str
) -> None:
    config = finished.model_copy(update={"output": s3_url})
    finish(config)
    storage = Storage(s3_url)
    whole = {path: storage.read_bytes(path) for path in storage.list("data")}
    manifests = [layout.shard_manifest_path(index) for index in range(3)]
    before = [storage.read_bytes(path) for path in manifests]
    flip(first_picture)(storage)
    gone(other_picture)(storage)
    cut("stages/generate/00001.parquet")(storage)
    storage.write_bytes("data/images/00000/stray.png", b"x")

    code, said = call(s3_url, "--sample", "0", "--repair")
    assert code == 1 and "2 damaged" in said and "1 missing" in said and "1 orphan" in said, said
    assert "2 shards reopened: run again" in said
    assert [storage.exists(path) for path in manifests] == [False, False, True]

    finish(config)
    assert {path: storage.read_bytes(path) for path in storage.list("data")} == whole
    assert storage.read_bytes(manifests[2]) == before[2]
    assert call(s3_url)[0] == 0
