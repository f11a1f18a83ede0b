"""How fast the dataset is written to local disk, against img2dataset's writers, in turns.

    python -m tests.benchmarks.writing [--images 2000] [--rounds 5]

The same encoded pictures, from memory, a thousand a shard, with the same captions, in each form
that a dataset may have. As files ours writes one an image, theirs three (picture, caption,
metadata); as WebDataset both write those three into a tar; as Parquet both write a column of
pictures. Both tell each picture's SHA-256; ours adds all metadata in a table a shard. Bar: at least
as many images a second.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.tables import row

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers/bin/python"
SIDE, SHARD = 128, 1000
CAPTION = "красный круг на белом фоне"
THEIRS = {
    "files": "FilesSampleWriter",
    "webdataset": "WebDatasetSampleWriter",
    "parquet": "ParquetSampleWriter",
}


def make_pictures(folder: Path, count: int) -> None:
    """Noise, so that no picture is smaller than another."""
    import torch

    from rudalle_lib.images import encode_image

    for number in range(count):
        picture = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8)
        (folder / f"{number:06d}.png").write_bytes(encode_image(picture))


def read_pictures(folder: Path) -> list[bytes]:
    """All of them, in memory."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def described_ours(pictures: list[bytes]) -> list[Any]:
    """Pictures and what a run knows of them."""
    from rudalle_lib.records import ImageRecord

    def record(number: int) -> ImageRecord:
        return ImageRecord(
            image_id=f"{number:016x}-000", prompt_id=f"{number:016x}", replica=0,
            shard=number // SHARD, text=CAPTION, text_ru=CAPTION, lang="ru", seed=number, score=0.5,
            rank=1, logprob=-1.0, ppl=2.7, width=SIDE, height=SIDE, temperature=1.0, top_k=2048,
            top_p=0.995, truncated=False, translator=None, decoder="demo-dalle",
            vqgan="demo-vqgan", scorer="demo-ruclip", upscaler=None,
        )  # fmt: skip

    return [(record(number), picture) for number, picture in enumerate(pictures)]


def write_ours(form: Any, images: list[Any], output: Path) -> None:
    """As `publish` does."""
    from rudalle_lib.config_publish import PublishConfig
    from rudalle_lib.shards import write_shard
    from rudalle_lib.storage import Storage

    storage, section = Storage(str(output)), PublishConfig(format=form)
    for start in range(0, len(images), SHARD):
        write_shard(storage, start // SHARD, images[start : start + SHARD], section)


def described_theirs(pictures: list[bytes]) -> list[Any]:
    """Pictures, their keys, and what a downloader knows of them."""
    known = {"caption": CAPTION, "width": SIDE, "height": SIDE}
    keys = (f"{number:09d}" for number in range(len(pictures)))
    return [(png, key, {"key": key, **known}) for key, png in zip(keys, pictures, strict=True)]


def write_theirs(form: str, images: list[Any], output: Path) -> None:
    """As img2dataset does; its writers alone: the package wants a downloader's libraries."""
    import pyarrow as pa

    found = importlib.util.find_spec("img2dataset")
    assert found is not None and found.submodule_search_locations
    file = Path(found.submodule_search_locations[0], "writer.py")
    spec = importlib.util.spec_from_file_location("img2dataset_writer", file)
    assert spec is not None and spec.loader is not None
    writers: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writers)

    schema = pa.schema(
        [("key", pa.string()), ("caption", pa.string()), ("width", pa.int32())]
        + [("height", pa.int32()), ("sha256", pa.string())]
    )
    output.mkdir()
    for start in range(0, len(images), SHARD):
        made = getattr(writers, THEIRS[form])
        writer = made(start // SHARD, str(output), True, 5, schema, "png")
        for png, key, known in images[start : start + SHARD]:
            digest = hashlib.sha256(png).hexdigest()  # as its downloader does
            writer.write(png, key, CAPTION, {**known, "sha256": digest})
        writer.close()


def images_a_second(which: str, form: str, pictures: Path, output: Path) -> float:
    """In this process: once to warm up, for a run has thousands of shards, once to be measured.

    What the first wrote is deleted, so that the system has its memory for the second.
    """
    write = write_ours if which == "ours" else write_theirs
    describe = described_ours if which == "ours" else described_theirs
    images = describe(read_pictures(pictures))
    write(form, images, output / "warm")
    shutil.rmtree(output / "warm")
    started = time.perf_counter()
    write(form, images, output / "measured")
    return len(images) / (time.perf_counter() - started)


def in_turns(form: str, images: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of both, a process each time."""
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        make_pictures(pictures, images)
        for _ in range(rounds + 1):  # the first is not counted
            for which, python in (("ours", sys.executable), ("theirs", str(PEERS))):
                output = Path(folder, which)
                output.mkdir()
                words = ["-m", "tests.benchmarks.writing", "--here", which, "--form", form]
                command = [python, *words, "--pictures", str(pictures), "--output", str(output)]
                said = subprocess.run(
                    command, cwd=ROOT, stdout=subprocess.PIPE, check=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                ).stdout  # fmt: skip
                speeds[which].append(float(json.loads(said)))
                shutil.rmtree(output)
    return {which: measured[1:] for which, measured in speeds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--here", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--form", choices=THEIRS, help="files, webdataset or parquet alone")
    parser.add_argument("--pictures", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        what = (arguments.here, arguments.form, arguments.pictures, arguments.output)
        print(json.dumps(images_a_second(*what)))
        return
    if not PEERS.exists():
        sys.exit("img2dataset is not installed; run `make peers` first.")
    for form in [arguments.form] if arguments.form else THEIRS:
        speeds = in_turns(form, arguments.images, arguments.rounds)
        ours, theirs = (statistics.median(speeds[which]) for which in ("ours", "theirs"))
        pairs = zip(speeds["ours"], speeds["theirs"], strict=True)
        ratio = statistics.median(our / their for our, their in pairs)
        row(f"{arguments.images:,} images written as {form}", f"{ours:,.0f} a second")
        row("  by img2dataset's writer", f"{theirs:,.0f} a second")
        row("  ours against it (bar: 1)", f"{ratio:.2f}x")


if __name__ == "__main__":
    main()
