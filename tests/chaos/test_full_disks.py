"""Disks that become full in the middle of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli.options import PACKAGED
from tests.support.prefect_home import make_prefect_home
from tests.support.tiny_run import LONG_TABLE

pytestmark = pytest.mark.chaos


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB, a little more than a run wants to find free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80M", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Write until the disk is full."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


@pytest.mark.parametrize("after", ["plan/*", "shards/*"])
def test_a_disk_that_becomes_full_is_exit_code_1_and_the_run_can_go_on(
    after: str, small_disk: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text(LONG_TABLE, encoding="utf-8")
    output = small_disk / "out"
    prompts = {"uri": str(tmp_path / "prompts.csv"), "shard_size": 1}
    generate = {"images": 4, "batch_size": 1}
    config = settings | {"output": str(output), "prompts": prompts, "generate": generate}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(make_prefect_home(tmp_path / "prefect"))
    command = [sys.executable, "-m", "flows.cli", "run", str(tmp_path / "run.yaml")]
    with subprocess.Popen(
        command, cwd=PACKAGED.parent, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        while not list(output.glob(after)):
            assert process.poll() is None
            time.sleep(0.1)
        fill(small_disk)
        _, error = process.communicate(timeout=400)
    assert process.returncode == 1, error
    assert "the disk is full; free some space and run again." in error
    assert "Traceback" not in error

    finished = {path: path.stat().st_mtime_ns for path in output.glob("shards/*.json")}
    (small_disk / "filler").unlink()
    faster = [*command, "--set", "generate.batch_size=50"]
    done = subprocess.run(
        faster, cwd=PACKAGED.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(list(output.glob("shards/*.json"))) == 6
    assert all(path.stat().st_mtime_ns == made for path, made in finished.items())
