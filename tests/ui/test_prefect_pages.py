"""Prefect's own pages in a real browser, with a run on the tiny stack in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageStat
from playwright.sync_api import Browser

from flows.demo_server import run_with, serving
from rudalle_lib.errors import ConfigError
from tests.servers import free_ports
from tests.tiny_stack import write_tiny_stack
from tests.ui.screenshots import take_artifact, take_gallery, take_run

pytestmark = [pytest.mark.ui, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A server with the run of three prompts in it."""
    table = folder / "prompts.csv"
    table.write_text("prompt\nчёрный квадрат\nкрасный круг\nсиний крест\n", encoding="utf-8")
    settings = {
        "name": "tiny",
        "output": str(folder / "out"),
        "prompts": {"uri": str(table), "shard_size": 2},
        "weights": {"folder": str(write_tiny_stack(folder / "weights")), "offline": True},
        "runtime": {"devices": "cpu", "threads": 1, "price_per_device_hour": 2.0},
        "generate": {"images": 4},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    (port,) = free_ports(1)
    with serving(folder / "prefect", port) as url:
        run_with(url, str(folder / "tiny.yaml"))
        yield url


def is_drawn(path: Path) -> bool:
    """Whether a picture is of the expected size and shows something."""
    picture = Image.open(path)
    return picture.size == (1280, 860) and max(ImageStat.Stat(picture).stddev) > 5


def test_run_artifact_and_gallery_can_be_seen(browser: Browser, address: str, folder: Path) -> None:
    """The artifact's page shows the pictures inside it: each function waits for what it names."""
    take_run(browser, address, folder / "run.webp")
    take_artifact(browser, address, "tiny", folder / "artifact.webp")
    take_gallery(browser, folder / "out/gallery/index.html", folder / "gallery.webp")
    assert all(is_drawn(folder / f"{name}.webp") for name in ("run", "artifact", "gallery"))


def test_a_second_server_at_the_same_port_is_refused(address: str, tmp_path: Path) -> None:
    port = int(address.rpartition(":")[2])
    refused = pytest.raises(ConfigError, match=f"a server at {address} already")
    with refused, serving(tmp_path, port):
        pass


def test_a_run_that_fails_is_told_with_its_exit_code(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exit code 2"):
        run_with(address, str(tmp_path / "missing.yaml"))
