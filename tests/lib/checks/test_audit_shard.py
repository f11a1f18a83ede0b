"""Every kind of damage to a shard is found, named and repaired; so are forged tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from rudalle_lib.checks.audit import audit_output, reopen_faulty
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.dataset.manifests import read_shard_manifest, write_shard_manifest
from rudalle_lib.images.codecs import encode_image
from rudalle_lib.schema.records import DataFile
from rudalle_lib.storage.storage import Storage
from tests.support.damage import (
    Damage,
    archive_of,
    artifact_of,
    cut,
    deleted,
    first_image,
    flip,
    forge,
    forged_column,
    image_of_shard_1,
    metadata_of,
    metadata_of_shard_1,
    rejects_of,
    replaced,
)
from tests.support.finished_run import finish, tiny_config
from tests.support.hand_made import plan_by_hand, publish_by_hand
from tests.support.image_records import VERSION, read_records

STRAY = f"data/images/00000/{VERSION}/stray.png"
"""An image that a run with other settings left."""

DAMAGES: list[tuple[str, str, Damage]] = [
    ("a flipped image", "damaged data/images/00000/", flip(first_image)),
    ("a cut image", "damaged data/images/00000/", cut(first_image)),
    ("another image", "damaged data/images/00000/", replaced(first_image, image_of_shard_1)),
    ("no image", "missing data/images/00000/", deleted(first_image)),
    ("flipped rows", "damaged data/metadata/00000.", flip(metadata_of)),
    ("cut rows", "damaged data/metadata/00000.", cut(metadata_of)),
    ("rows of another shard", "damaged data/metadata/00000.",
     replaced(metadata_of, metadata_of_shard_1)),
    ("no rows", "missing data/metadata/00000.", deleted(metadata_of)),
    ("flipped rejects", "damaged rejects/00000.", flip(rejects_of)),
    ("a flipped manifest", "damaged shards/00000.json", flip("shards/00000.json")),
    ("a cut manifest", "damaged shards/00000.json", cut("shards/00000.json")),
    ("no manifest", "unfinished shards/00000.json", deleted("shards/00000.json")),
    ("flipped tokens", "damaged stages/generate/00000.", flip(artifact_of("generate"))),
    ("cut drawings", "damaged stages/decode/00000.", cut(artifact_of("decode"))),
    ("flipped scores", "damaged stages/score/00000.", flip(artifact_of("score"), 0.9)),
    ("a flipped run.json", "damaged run.json", flip("run.json")),
    ("a flipped card", "damaged README.md", flip("README.md")),
    ("a cut gallery", "damaged gallery/data/00000.js", cut("gallery/data/00000.js")),
    ("no contact sheet", "missing contact_sheet.png", deleted("contact_sheet.png")),
    ("a stray image", f"orphan {STRAY}", lambda storage: storage.write_bytes(STRAY, b"x")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "damage"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES]
)
def test_damage_is_found_named_and_repaired(
    config: RunConfig, finished: RunConfig, expected: str, damage: Damage
) -> None:
    storage, intact = Storage(config.output), Storage(finished.output)
    damage(storage)
    audit = audit_output(storage)
    found = [f"{fault.kind} {fault.path}" for fault in audit.faults]
    assert any(item.startswith(expected) for item in found), found
    assert {fault.shard for fault in audit.faults} <= {0, None}
    reopen_faulty(storage, audit, 60)
    finish(config)
    assert audit_output(storage).faults == []
    for path in intact.list("data"):
        assert storage.read_bytes(path) == intact.read_bytes(path)


def without(name: str) -> Damage:
    return lambda storage: forge(storage, lambda table: table.drop_columns([name]))


def as_text(name: str) -> Damage:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        return table.set_column(place, name, table.column(name).cast(pa.string()))

    return lambda storage: forge(storage, change)


@pytest.mark.parametrize(
    ("kind", "words", "damage"),
    [
        ("label", "expected text ", forged_column("text", lambda texts: texts[::-1])),
        ("label", "expected seed ", forged_column("seed", lambda seeds: [seeds[0], *seeds[:-1]])),
        ("column", "pass-through columns differ",
         forged_column("theme", lambda themes: ["other" for _ in themes])),
        ("column", "missing or have another type: rank", without("rank")),
        ("column", "missing or have another type: width", as_text("width")),
        ("duplicate", "has two rows", forged_column("image_id", lambda ids: [ids[0], *ids[:-1]])),
        ("count", "published images, found 3",
         lambda storage: forge(storage, lambda table: table.slice(1))),
    ],
)  # fmt: skip
def test_tables_that_were_forged_with_their_digests_are_found(
    config: RunConfig, kind: str, words: str, damage: Damage
) -> None:
    storage = Storage(config.output)
    damage(storage)
    faults = audit_output(storage).faults
    assert any(fault.kind == kind and words in fault.detail for fault in faults), faults
    assert {fault.shard for fault in faults} == {0}


SMALL_IMAGE = encode_image(torch.zeros(3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not an image", "the image is not a readable PNG"),
        (SMALL_IMAGE, "pixels, found 8 x 8"),
    ],
)
def test_an_image_that_was_forged_with_its_digest_is_found(
    config: RunConfig, content: bytes, words: str
) -> None:
    storage = Storage(config.output)
    path = storage.read_table(metadata_of(storage)).column("path")[0].as_py()
    storage.write_bytes(path, content)
    file = DataFile.of(path, content)
    forged_column("sha256", lambda digests: [file.sha256, *digests[1:]])(storage)
    forged_column("bytes", lambda sizes: [file.bytes, *sizes[1:]])(storage)
    faults = audit_output(storage).faults
    assert any(fault.kind == "image" and words in fault.detail for fault in faults), faults
    assert {fault.path for fault in faults} == {path, "shards/00000.json"}


def replace_archive(storage: Storage, content: bytes) -> None:
    """Replace the archive of shard 0 together with its digest."""
    manifest = read_shard_manifest(storage, 0)
    assert manifest is not None
    (before,) = manifest.archives
    storage.write_bytes(before.path, content)
    archive = DataFile.of(before.path, content)
    write_shard_manifest(storage, replace(manifest, archives=(archive,)))


def test_an_archive_that_was_forged_with_its_digest_is_found(config: RunConfig) -> None:
    storage = Storage(config.output)
    publish = config.publish.model_copy(update={"format": "webdataset"})
    finish(config.model_copy(update={"publish": publish}))
    assert audit_output(storage).faults == []
    path = archive_of(storage)
    content = storage.read_bytes(path)

    replace_archive(storage, b"not a tar" * 100)
    (fault,) = audit_output(storage).faults
    assert (fault.kind, fault.path) == ("damaged", path) and "expected a tar" in fault.detail

    replace_archive(storage, bytes(1024))  # an empty tar
    faults = audit_output(storage).faults
    assert {fault.kind for fault in faults} == {"missing"}
    assert all("it holds no image" in fault.detail for fault in faults)

    replace_archive(storage, content)
    assert audit_output(storage).faults == []


def test_a_damaged_plan_is_found_and_kept(config: RunConfig) -> None:
    storage = Storage(config.output)
    flip("plan/00001.parquet")(storage)
    audit = audit_output(storage)
    assert (audit.faults[0].kind, audit.faults[0].path) == ("damaged", "plan/00001.parquet")
    assert reopen_faulty(storage, audit, 60) == []
    assert storage.exists("plan/00001.parquet")


def test_former_column_names_are_noted_and_are_no_faults(config: RunConfig) -> None:
    storage = Storage(config.output)
    forge(storage, lambda table: renamed(table, {"background": "ground"}))
    path = artifact_of("decode", 1)(storage)
    metadata = storage.read_metadata(path)
    storage.write_table(path, renamed(storage.read_table(path), {"image": "picture"}), metadata)
    audit = audit_output(storage)
    assert audit.faults == []
    (note,) = audit.notes
    assert "in 2 shards: ground (now background), picture (now image)" in note


def test_pass_through_columns_of_older_shards_keep_their_names(
    tmp_path: Path,
) -> None:
    """Before the renaming, a user's `background` was free and a user's `ground` was not."""
    table = "prompt,ground,background\nкрасный круг,mine,also mine\n"
    config = tiny_config(tmp_path, str(tmp_path / "out"), table)
    finish(config)
    storage = Storage(config.output)
    stored = storage.read_table(metadata_of(storage)).column_names
    assert stored[-3:] == ["background", "ground", "input_background"]
    assert audit_output(storage).faults == [] and audit_output(storage).notes == []

    former = {"background": "ground", "ground": "input_ground", "input_background": "background"}
    forge(storage, lambda metadata: renamed(metadata, former))
    audit = audit_output(storage)
    assert audit.faults == [] and "ground (now background)" in audit.notes[0]
    frame = read_images(config.output)
    assert list(frame.columns[-3:]) == ["background", "input_ground", "input_background"]
    assert set(frame["input_ground"]) == {"mine"} and set(frame["input_background"]) == {
        "also mine"
    }
    assert frame["background"].isna().all()
    forged_column("input_ground", lambda values: ["other" for _ in values])(storage)
    assert [fault.kind for fault in audit_output(storage).faults] == ["column"]


def renamed(table: pa.Table, names: dict[str, str]) -> pa.Table:
    return table.rename_columns([names.get(name, name) for name in table.column_names])


def test_the_same_image_of_two_prompts_is_noted_whatever_its_file_says_of_itself(
    tmp_path: Path,
) -> None:
    config = RunConfig.model_validate({"output": str(tmp_path / "out"), "score": {"keep_best": 1}})
    storage = Storage(config.output)
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    first, second = read_records(storage, 0)
    assert first.sha256 != second.sha256  # the packets differ
    assert "square-000 and circle-000 are identical images" in audit_output(storage).notes
