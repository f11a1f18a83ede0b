"""The scripts of `examples/` run as they are, with the models of the package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rudalle_lib.dataset.frames import read_images, read_rejects
from rudalle_lib.images.codecs import decode_image
from tests.support.prefect_home import make_prefect_home
from tests.support.s3_server import S3Server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
FINISHED = ROOT / "tests" / "data" / "before_rooms" / "dataset"


def run(
    script: str, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
) -> str:
    """Run an example in a folder; what it printed."""
    settings = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    home = make_prefect_home(folder / "prefect")
    settings |= {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder, env={**settings, **(environment or {})},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_tested_and_named_in_the_docs() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    tests, page = (
        Path(__file__).read_text("utf-8"),
        (ROOT / "docs" / "python.md").read_text("utf-8"),
    )
    assert len(scripts) == 4
    assert [name for name in scripts if f'"{name}"' not in tests or name not in page] == []


def test_draw_and_rank(tmp_path: Path) -> None:
    printed = run("draw_and_rank.py", "чёрный квадрат на белом фоне", folder=tmp_path)
    scores = [float(line.rpartition(" ")[2]) for line in printed.splitlines()]
    assert len(scores) == 8
    assert scores == sorted(scores, reverse=True)
    best = [decode_image(path.read_bytes()) for path in sorted(tmp_path.glob("best-*.png"))]
    assert [image.shape for image in best] == [(3, 256, 256)] * 2


def test_dataset_from_a_table_in_memory(tmp_path: Path) -> None:
    output = tmp_path / "output"
    printed = run("dataset_from_a_table_in_memory.py", str(output), folder=tmp_path)
    assert "4 of 8 images published" in printed
    images = read_images(str(output))
    assert images["theme"].tolist() == ["malevich"] * 4
    assert "empty_prompt" in read_rejects(str(output))["reason"].tolist()


def test_read_into_dataloader(tmp_path: Path) -> None:
    printed = run("read_into_dataloader.py", str(FINISHED), folder=tmp_path)
    table = read_images(str(FINISHED))
    batches = printed.splitlines()
    assert len(batches) == -(-len(table) // 4)
    assert batches[0].startswith("(4, 3, ")
    assert batches[0].endswith(table["text"].iloc[0])


def test_run_on_s3(s3_server: S3Server, tmp_path: Path) -> None:
    arguments = ["--set", "prompts.limit=2", "--set", "generate.images=2"]
    access = s3_server.environment
    printed = run("run_on_s3.py", *arguments, folder=tmp_path, environment=access)
    assert f"images in s3://{s3_server.bucket}/demo, mean score" in printed
