"""Encoding: tokens as the VQ-GAN gives them, wrong rows as rejects, and nothing encoded twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.errors import DataError, StoppedError, TransientError
from rudalle_lib.generation.image_prompts import fit
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.storage.storage import Storage
from rudalle_lib.text.tokenizer import Tokenizer
from rudalle_lib.training.data import encode
from rudalle_lib.training.data.encode import Progress, Share, encode_data
from rudalle_lib.training.data.manifest import EncodedData, read_manifest
from rudalle_lib.weights.loading import load_vqgan
from tests.support.image_data import CAPTIONS, image_bytes, write_folder, write_tar
from tests.support.tiny_stack import SIDE, TEXT_LENGTH

Tuning = Callable[..., FineTuneConfig]

ROOT = Path(__file__).resolve().parents[4]


def encoded(config: FineTuneConfig, **options: object) -> tuple[EncodedData, Progress]:
    """The encoded data, and the last progress."""
    seen: list[Progress] = []
    data = encode_data(config, Storage(config.output), on_progress=seen.append, **options)  # type: ignore[arg-type]
    return data, seen[-1]


def table_of(config: FineTuneConfig, data: EncodedData) -> pa.Table:
    storage = Storage(config.output)
    return pa.concat_tables([storage.read_table(shard.path) for shard in data.shards])


def rejects_of(config: FineTuneConfig, data: EncodedData) -> dict[str, tuple[str, str]]:
    """Reason and detail by row."""
    storage = Storage(config.output)
    paths = [shard.rejects for shard in data.shards if shard.rejects]
    rows = [row for path in paths for row in storage.read_table(path).to_pylist()]
    assert {row["source"] for row in rows} <= {str(source.uri) for source in config.data}
    return {row["row"]: (row["reason"], row["detail"]) for row in rows}


# --- what is encoded ---------------------------------------------------------------------------


def test_tokens_and_ids_are_those_of_vqgan_and_tokenizer(tuning: Tuning, tmp_path: Path) -> None:
    config = tuning(write_folder(tmp_path / "mine"), encoding={"shard_size": 2, "batch_size": 2})
    data, progress = encoded(config)
    assert (progress.images, progress.rejects, progress.shards, progress.reused) == (5, 0, 3, 0)
    assert (data.height, data.width, data.text_length, data.tokens) == (SIDE, SIDE, TEXT_LENGTH, 16)
    assert read_manifest(Storage(config.output)) == data
    table = table_of(config, data)
    vqgan = load_vqgan("demo-vqgan", config.weights).model
    tokenizer = Tokenizer.load(Path(str(config.weights.folder)) / "demo-dalle" / "bpe.model")
    for number, row in enumerate(table.to_pylist()):
        caption = f"{CAPTIONS[number]} {number}"
        assert (row["key"], row["caption"]) == (f"{number:03}.png", caption)
        assert row["text"] == tokenizer.encode_text(caption, TEXT_LENGTH).ids
        image = fit(decode_image(image_bytes(number)), SIDE, SIDE)[None]
        assert row["image"] == vqgan.encode(image / 127.5 - 1).flatten().tolist()


@pytest.mark.parametrize("trains", ["vqgan", "scorer"])
def test_images_are_kept_as_they_are(tuning: Tuning, tmp_path: Path, trains: str) -> None:
    config = tuning(write_folder(tmp_path / "mine", 2), trains=trains)
    data, _ = encoded(config)
    table = table_of(config, data)
    assert table.column_names == [
        "key",
        "caption",
        *(["text"] if trains == "scorer" else []),
        "image",
    ]
    assert data.text_length == (40 if trains == "scorer" else 0)
    expected = fit(decode_image(image_bytes(1)), SIDE, SIDE).numpy().tobytes()
    assert table.column("image")[1].as_py() == expected


def test_a_vqgan_needs_no_captions(tuning: Tuning, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", 2)
    (folder / "001.txt").unlink()
    data, _ = encoded(tuning(folder, trains="vqgan"))
    assert data.rows == 2 and data.rejected == {}


def test_tokens_do_not_depend_on_the_batch(tuning: Tuning, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    tables = []
    for size in (1, 4):
        config = tuning(folder, output=tmp_path / str(size), encoding={"batch_size": size})
        tables.append(table_of(config, encoded(config)[0]))
    assert tables[0].combine_chunks() == tables[1].combine_chunks()


# --- rejects -----------------------------------------------------------------------------------


def test_wrong_files_of_a_folder_become_rejects(tuning: Tuning, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", 1)
    whole = image_bytes(9, form="JPEG")
    wrong: dict[str, tuple[bytes | None, bytes | None, str]] = {
        "binary": (whole, b"\xff\xfe\x00", "bad_caption"),
        "blank": (whole, b" \n\t ", "no_caption"),
        "cut": (whole[: len(whole) // 2], b"a", "bad_image"),
        "empty": (b"", b"a", "bad_image"),
        "html": (b"<html>not found</html>", b"a", "bad_image"),
        "nothing": (None, b"a", "no_image"),
        "bomb": (png_header(60_000, 60_000), b"a", "bad_image"),
        "untold": (whole, None, "no_caption"),
    }
    for name, (image, caption, _) in wrong.items():
        if image is not None:
            (folder / f"{name}.jpg").write_bytes(image)
        if caption is not None:
            (folder / f"{name}.txt").write_bytes(caption)
    for name in ("pipe", "folder", "link"):
        (folder / f"{name}.txt").write_text("a")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "link.png").symlink_to("/dev/zero")
    (folder / "twice.txt").write_text("a")
    for ending in ("png", "webp"):
        (folder / f"twice.{ending}").write_bytes(image_bytes(1))
    config = tuning(folder, encoding={"shard_size": 4})
    data, progress = encoded(config)
    found = {
        name.partition(".")[0]: reason for name, (reason, _) in rejects_of(config, data).items()
    }
    expected = {name: reason for name, (*_, reason) in wrong.items()}
    expected |= {"pipe": "unreadable_image", "link": "unreadable_image", "folder": "no_image"}
    assert found == {**expected, "twice": "same_name"}
    assert data.rows == 1 and progress.rejects == len(found) == sum(data.rejected.values())


def png_header(width: int, height: int) -> bytes:
    """A small PNG file that says that it is large."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_wrong_rows_of_tables_become_rejects(tuning: Tuning, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(image_bytes(0))
    rows: list[tuple[object, object, str | None]] = [
        ("круг", "good.png", None),
        (None, "good.png", "no_caption"),
        (float("nan"), "good.png", "no_caption"),
        (7, "good.png", "bad_caption"),
        ({"text": "круг"}, "good.png", "bad_caption"),
        ("круг", None, "no_image"),
        ("круг", "missing.png", "unreadable_image"),
        ("круг", ".", "unreadable_image"),
        ("круг", 5, "no_image"),
        ("круг", "ftp://host/a.png", "no_image"),
        ("круг", "http://127.0.0.1:1/a.png", "unreadable_image"),
    ]
    lines = [json.dumps({"text": text, "image": image}) for text, image, _ in rows]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, "{no json"]) + "\n")
    config = tuning(tmp_path / "t.jsonl")
    data, _ = encoded(config)
    expected = {f"t.jsonl, row {n}": reason for n, (*_, reason) in enumerate(rows, 1) if reason}
    expected[f"t.jsonl, row {len(rows) + 1}"] = "bad_row"
    assert {row: reason for row, (reason, _) in rejects_of(config, data).items()} == expected
    assert data.rows == 1


def test_wrong_samples_and_tars_become_rejects(tuning: Tuning, tmp_path: Path) -> None:
    image = image_bytes(0)
    whole = write_tar(
        tmp_path / "data" / "a.tar",
        [
            ("good.png", image), ("good.txt", b"a"),
            ("two.png", image), ("two.jpg", image), ("two.txt", b"a"),
            ("none.txt", b"a"),
            ("untold.png", image),
            ("json.png", image), ("json.json", b"{"),
            ("good.png", image), ("good.txt", b"b"),
        ],
    )  # fmt: skip
    (tmp_path / "data" / "b.tar").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "data" / "c.tar").write_bytes(b"<html>" * 200)
    config = tuning(tmp_path / "data")
    data, _ = encoded(config)
    assert {row: reason for row, (reason, _) in rejects_of(config, data).items()} == {
        "a.tar, two": "same_name",
        "a.tar, none": "no_image",
        "a.tar, untold": "no_caption",
        "a.tar, json": "bad_row",
        "a.tar, good": "same_name",
        "b.tar": "damaged_file",
        "c.tar": "damaged_file",
    }
    assert data.rows == 1


def test_size_and_length(tuning: Tuning, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", 1)
    (folder / "exact.png").write_bytes(image_bytes(1, SIDE, SIDE))
    (folder / "exact.txt").write_text("круг " * 20)
    kept = tuning(folder, output=tmp_path / "kept")
    assert encoded(kept)[0].rejected == {}
    strict = {"fit": "exact", "long_captions": "reject"}
    config = tuning(folder, write_folder(tmp_path / "other", 1), encoding=strict)
    with pytest.raises(DataError, match="no image to learn from; 3 rows.*32 x 32.*found 40 x 36"):
        encoded(config)
    (folder / "exact.txt").write_text("круг")
    data, _ = encoded(config)
    assert data.rows == 1 and data.rejected == {"wrong_size": 2}
    config = tuning(folder, encoding={"long_captions": "reject"})
    (folder / "exact.txt").write_text("круг " * 20)
    data, _ = encoded(config)
    assert data.rows == 1 and data.rejected == {"long_caption": 1}


def test_an_outage_is_an_error_and_no_thousand_rejects(tuning: Tuning, tmp_path: Path) -> None:
    rows = [f"круг,http://127.0.0.1:1/{number}.png" for number in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["text,url", *rows]))
    own = {"uri": str(tmp_path / "t.csv"), "allow_private_hosts": True}
    with pytest.raises(TransientError, match="12 of 12 images .* the network may be down"):
        encoded(tuning(own))
    assert not list(tmp_path.glob("out/stages/encode/*"))


# --- what is encoded again ---------------------------------------------------------------------


def test_nothing_is_encoded_twice(
    tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tuning(write_folder(tmp_path / "mine"), encoding={"shard_size": 2})
    before, _ = encoded(config)
    monkeypatch.setattr(encode, "_prepare", None)
    after, progress = encoded(config)
    assert after == before and progress.reused == progress.shards == 3


def test_a_grown_dataset_encodes_what_is_new(tuning: Tuning, tmp_path: Path) -> None:
    config = tuning(write_folder(tmp_path / "mine", 4), encoding={"shard_size": 2})
    before, _ = encoded(config)
    write_folder(tmp_path / "mine", 3, first=4)
    after, progress = encoded(config)
    assert progress.reused == 2 and progress.shards == 4 and after.rows == 7
    assert after.shards[:2] == before.shards


@pytest.mark.parametrize("change", ["image", "caption"])
def test_a_changed_row_encodes_its_shard(tuning: Tuning, tmp_path: Path, change: str) -> None:
    folder = write_folder(tmp_path / "mine", 4)
    config = tuning(folder, encoding={"shard_size": 2})
    encoded(config)
    if change == "image":
        (folder / "003.png").write_bytes(image_bytes(77))
    else:
        (folder / "003.txt").write_text("другое")
    data, progress = encoded(config)
    assert progress.reused == 1
    assert table_of(config, data).column("caption")[3].as_py() == (
        "другое" if change == "caption" else f"{CAPTIONS[3]} 3"
    )


@pytest.mark.parametrize("network", ["vqgan", "tokenizer", "settings", "kind"])
def test_other_networks_and_settings_encode_again(
    tuning: Tuning, tiny_stack: Path, tmp_path: Path, network: str
) -> None:
    weights = tmp_path / "weights"
    for name in ("demo-dalle", "demo-vqgan", "demo-ruclip"):
        (weights / name).mkdir(parents=True)
        for file in (tiny_stack / name).iterdir():
            (weights / name / file.name).write_bytes(file.read_bytes())
    own = {"folder": str(weights), "offline": True}
    folder = write_folder(tmp_path / "mine", 2)
    encoded(tuning(folder, weights=own))
    changes: dict[str, object] = {}
    if network == "vqgan":
        state = load_file(weights / "demo-vqgan" / "model.safetensors")
        state["quant_conv.weight"] = torch.flip(state["quant_conv.weight"], [0])
        save_file(state, weights / "demo-vqgan" / "model.safetensors")
    elif network == "tokenizer":
        bpe = weights / "demo-dalle" / "bpe.model"
        first, letter, *others = bpe.read_text().splitlines()
        bpe.write_text("\n".join([first, *others[:-1], letter, others[-1], ""]))
    elif network == "settings":
        changes["encoding"] = {"long_captions": "reject"}
    else:
        changes["trains"] = "scorer"
    _, progress = encoded(tuning(folder, weights=own, **changes))
    assert progress.reused == 0
    _, progress = encoded(tuning(folder, weights=own, **changes))
    assert progress.reused == 1


def test_a_torn_shard_counts_as_absent(tuning: Tuning, tmp_path: Path) -> None:
    config = tuning(write_folder(tmp_path / "mine", 2))
    data, _ = encoded(config)
    path = tmp_path / "out" / data.shards[0].path
    path.write_bytes(path.read_bytes()[:-100])
    notices: list[str] = []
    again, progress = encoded(config, notice=notices.append)
    assert again == data and progress.reused == 0
    assert len(notices) == 1 and "It is made again." in notices[0]


def test_rejects_are_those_of_the_data_and_come_back(tuning: Tuning, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", 2)
    (folder / "001.png").write_bytes(b"none")
    config = tuning(folder)
    data, _ = encoded(config)
    (file,) = tmp_path.glob("out/rejects/*")
    whole = file.read_bytes()
    for torn in (whole[:-100], None):
        file.write_bytes(torn) if torn else file.unlink()
        assert encoded(config)[1].reused == 1
        assert file.read_bytes() == whole
    other = tmp_path / "out" / "rejects" / "mine.parquet"
    other.write_bytes(b"of somebody else")
    (folder / "001.png").write_bytes(image_bytes(1))
    assert encoded(config)[0].rejected == {}
    assert list(tmp_path.glob("out/rejects/*")) == [other]


def test_names_that_are_no_text_are_read_or_rejected(tuning: Tuning, tmp_path: Path) -> None:
    folder = os.fsencode(write_folder(tmp_path / "mine", 1))
    for name, content in ((b"\xff.png", image_bytes(1)), (b"\xff.txt", b"a")):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    tar = write_tar(tmp_path / "a.tar", [("\udcff.png", image_bytes(2)), ("\udcff.txt", b"b")])
    config = tuning(tmp_path / "mine", tar)
    data, _ = encoded(config)
    assert rejects_of(config, data) == {
        "?.png": ("no_caption", rejects_of(config, data)["?.png"][1])
    }
    assert table_of(config, data).column("key").to_pylist() == ["000.png", "a.tar, ?"]


def test_a_stop_keeps_what_is_finished(tuning: Tuning, tmp_path: Path) -> None:
    config = tuning(write_folder(tmp_path / "mine"), encoding={"shard_size": 2, "batch_size": 1})
    asked = iter([False] * 5 + [True] * 100)
    with pytest.raises(StoppedError):
        encoded(config, stop=lambda: next(asked))
    assert read_manifest(Storage(config.output)) is None
    _, progress = encoded(config)
    assert progress.reused == 1


def test_processes_share_the_shards(tuning: Tuning, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", 7)
    whole = tuning(folder, output=tmp_path / "whole", encoding={"shard_size": 2})
    expected, _ = encoded(whole)
    config = tuning(folder, encoding={"shard_size": 2})
    counts = [len(encoded(config, share=Share(number, 3))[0].shards) for number in (2, 0, 1)]
    assert counts == [1, 2, 1]
    assert read_manifest(Storage(config.output)) is None
    data, progress = encoded(config)
    assert data == expected and progress.reused == 4


KILLED = """
import os, signal, sys
from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.encode import encode_data

def kill(progress):
    if progress.shards == 2 and progress.images > 4:
        os.kill(os.getpid(), signal.SIGKILL)

config = FineTuneConfig.model_validate_json(sys.stdin.read())
encode_data(config, Storage(config.output), on_progress=kill)
"""


@pytest.mark.chaos
def test_a_killed_process_loses_only_its_shard(tuning: Tuning, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", 7)
    config = tuning(folder, encoding={"shard_size": 2, "batch_size": 1})
    run = subprocess.run(
        [sys.executable, "-c", KILLED], input=config.model_dump_json(), text=True, cwd=ROOT
    )
    assert run.returncode == -signal.SIGKILL
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/stages/encode/*")}
    assert len(files) == 2
    data, progress = encoded(config)
    assert (progress.reused, progress.shards, data.rows) == (2, 4, 7)
    assert {path: path.stat().st_mtime_ns for path in files} == files


# --- forms with their images in them -----------------------------------------------------------


def test_images_in_tables_are_encoded_from_a_temporary_file(tuning: Tuning, tmp_path: Path) -> None:
    images = [image_bytes(number) for number in range(5)]
    pq.write_table(pa.table({"caption": list(CAPTIONS), "image": images}), tmp_path / "t.parquet")
    config = tuning(tmp_path / "t.parquet", encoding={"shard_size": 2})
    data, _ = encoded(config)
    same = tuning(write_folder(tmp_path / "mine"), output=tmp_path / "same")
    found, expected = table_of(config, data), table_of(same, encoded(same)[0])
    assert found.column("image").to_pylist() == expected.column("image").to_pylist()
    _, progress = encoded(config)
    assert progress.reused == 3


def test_on_s3(tuning: Tuning, tmp_path: Path, s3_url: str) -> None:
    config = tuning(write_folder(tmp_path / "mine", 3), output=s3_url, encoding={"shard_size": 2})
    data, _ = encoded(config)
    assert read_manifest(Storage(s3_url)) == data
    _, progress = encoded(config)
    assert progress.reused == 2


def test_two_datasets_are_encoded_in_order(tuning: Tuning, tmp_path: Path) -> None:
    first, second = write_folder(tmp_path / "a", 3), write_folder(tmp_path / "b", 2, first=3)
    config = tuning({"uri": str(first), "repeats": 4}, second, encoding={"shard_size": 2})
    data, progress = encoded(config)
    assert [source.repeats for source in data.sources] == [4, 1]
    assert (progress.source, progress.sources) == (2, 2)
    write_folder(tmp_path / "a", 1, first=3)
    _, progress = encoded(config)
    assert progress.reused == 2, "what precedes it does not matter to a dataset"
