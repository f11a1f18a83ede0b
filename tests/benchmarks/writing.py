"""Compare the speed of writing datasets to local disk with img2dataset's writers.

    python -m tests.benchmarks.writing [--images 2000] [--rounds 5]

Both write the same encoded images from memory, with the same captions and a thousand images per
shard, alternately and in all formats. As files, ours writes one file per image, theirs three
(image, caption, metadata). As WebDataset, both write these three into a tar. As Parquet, both write
a column of images. Both compute the SHA-256 of each image; ours adds a table of all metadata per
shard. Bar: at least as many images per second.
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
"""Side of an image in pixels, and images per shard."""

CAPTION = "красный круг на белом фоне"
THEIRS = {
    "files": "FilesSampleWriter",
    "webdataset": "WebDatasetSampleWriter",
    "parquet": "ParquetSampleWriter",
}
"""img2dataset's writers by format."""


def make_images(folder: Path, count: int) -> None:
    """Write `count` images of noise, which all have the same size."""
    import torch

    from rudalle_lib.images.codecs import encode_image

    for number in range(count):
        image = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8)
        (folder / f"{number:06d}.png").write_bytes(encode_image(image))


def read_source(folder: Path) -> list[bytes]:
    """Read all images into memory."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def described_ours(images: list[bytes]) -> list[Any]:
    """Return images with the metadata that a run has for them."""
    from rudalle_lib.schema.records import ImageRecord

    def record(number: int) -> ImageRecord:
        return ImageRecord(
            image_id=f"{number:016x}-000", prompt_id=f"{number:016x}", replica=0,
            shard=number // SHARD, text=CAPTION, text_ru=CAPTION, lang="ru", seed=number, score=0.5,
            rank=1, logprob=-1.0, ppl=2.7, width=SIDE, height=SIDE, temperature=1.0, top_k=2048,
            top_p=0.995, truncated=False, translator=None, decoder="demo-dalle",
            vqgan="demo-vqgan", scorer="demo-ruclip", upscaler=None,
        )  # fmt: skip

    return [(record(number), image) for number, image in enumerate(images)]


def write_ours(form: Any, images: list[Any], output: Path) -> None:
    """Write images like `publish` does."""
    from rudalle_lib.config.sections import PublishConfig
    from rudalle_lib.dataset.layout import version_of
    from rudalle_lib.dataset.writer import write_shard
    from rudalle_lib.storage.storage import Storage

    storage, section = Storage(str(output)), PublishConfig(format=form)
    version = version_of("0" * 32)
    for start in range(0, len(images), SHARD):
        write_shard(storage, start // SHARD, version, images[start : start + SHARD], section)


def described_theirs(images: list[bytes]) -> list[Any]:
    """Return images with their keys and the metadata that a downloader has for them."""
    known = {"caption": CAPTION, "width": SIDE, "height": SIDE}
    keys = (f"{number:09d}" for number in range(len(images)))
    return [(png, key, {"key": key, **known}) for key, png in zip(keys, images, strict=True)]


def write_theirs(form: str, images: list[Any], output: Path) -> None:
    """Write images with img2dataset's writers, loaded alone to avoid the package's dependencies."""
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
        writer_class = getattr(writers, THEIRS[form])
        writer = writer_class(start // SHARD, str(output), True, 5, schema, "png")
        for png, key, known in images[start : start + SHARD]:
            digest = hashlib.sha256(png).hexdigest()  # like its downloader does
            writer.write(png, key, CAPTION, {**known, "sha256": digest})
        writer.close()


def images_per_second(which: str, form: str, source: Path, output: Path) -> float:
    """Write all images twice in this process; return the speed of the second time.

    The first time warms up, as in a run of many shards. Its output is deleted to free page cache.
    """
    write = write_ours if which == "ours" else write_theirs
    describe = described_ours if which == "ours" else described_theirs
    images = describe(read_source(source))
    write(form, images, output / "warm")
    shutil.rmtree(output / "warm")
    started = time.perf_counter()
    write(form, images, output / "measured")
    return len(images) / (time.perf_counter() - started)


def measure_alternately(form: str, images: int, rounds: int) -> dict[str, list[float]]:
    """Return images per second of both writers, measured in one process per round."""
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        make_images(source, images)
        for _ in range(rounds + 1):  # the first is not counted
            for which, python in (("ours", sys.executable), ("theirs", str(PEERS))):
                output = Path(folder, which)
                output.mkdir()
                arguments = ["-m", "tests.benchmarks.writing", "--here", which, "--form", form]
                command = [python, *arguments, "--source", str(source), "--output", str(output)]
                printed = subprocess.run(
                    command, cwd=ROOT, stdout=subprocess.PIPE, check=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                ).stdout  # fmt: skip
                speeds[which].append(float(json.loads(printed)))
                shutil.rmtree(output)
    return {which: measured[1:] for which, measured in speeds.items()}


def main() -> None:
    """Run the command line: measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="images to write")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per format")
    parser.add_argument("--here", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--form", choices=THEIRS, help="measure only this format")
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        what = (arguments.here, arguments.form, arguments.images, arguments.output)
        print(json.dumps(images_per_second(*what)))
        return
    if not PEERS.exists():
        sys.exit("img2dataset is not installed: run `make peers` first.")
    for form in [arguments.form] if arguments.form else THEIRS:
        speeds = measure_alternately(form, arguments.images, arguments.rounds)
        ours, theirs = (statistics.median(speeds[which]) for which in ("ours", "theirs"))
        pairs = zip(speeds["ours"], speeds["theirs"], strict=True)
        ratio = statistics.median(our / their for our, their in pairs)
        row(f"{arguments.images:,} images written as {form}", f"{ours:,.0f} per second")
        row("  by img2dataset's writer", f"{theirs:,.0f} per second")
        row("  ours compared with it (bar: 1x)", f"{ratio:.2f}x")


if __name__ == "__main__":
    main()
