"""Files of models are found in a folder, the package or a hub, and verified."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import MappingProxyType

import huggingface_hub.constants
import pytest

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import WeightsError
from rudalle_lib.weights.digest_cache import file_digest
from rudalle_lib.weights.files import digest, resolve_files


@pytest.fixture
def vqgan(tmp_path: Path) -> WeightsConfig:
    """A folder with files named like those of demo-vqgan, but with other content."""
    folder = tmp_path / "weights" / "demo-vqgan"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"tensors")
    (folder / "config.json").write_text("{}")
    return WeightsConfig(folder=str(tmp_path / "weights"))


def test_digests_follow_the_content_of_files(vqgan: WeightsConfig, tmp_path: Path) -> None:
    entry = registry.get("demo-vqgan")
    files = resolve_files(entry, vqgan)
    before = digest(entry, files)
    assert len(before) == 32
    weights = files["weights"]
    assert file_digest(weights) == hashlib.sha256(b"tensors").hexdigest()
    moved = (tmp_path / "weights").rename(tmp_path / "elsewhere")
    files = resolve_files(entry, WeightsConfig(folder=str(moved)))
    assert digest(entry, files) == before
    files["weights"].write_bytes(b"tensorz")
    os.utime(files["weights"], ns=(1, 1))  # the clock may be too coarse to distinguish two writes
    assert digest(entry, files) != before


def test_a_file_is_verified_against_the_digest_of_the_registry(vqgan: WeightsConfig) -> None:
    entry = registry.get("demo-vqgan")
    expected = dataclasses.replace(entry, sha256=MappingProxyType({"weights": "0" * 64}))
    with pytest.raises(WeightsError, match="model.safetensors of demo-vqgan has SHA-256 .* 0000"):
        resolve_files(expected, vqgan)


def test_a_packaged_file_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rudalle_lib.weights.files.PACKAGED", tmp_path)
    with pytest.raises(WeightsError, match="expected .*demo-dalle/model.safetensors.*train-demo"):
        resolve_files(registry.get("demo-dalle"))


@pytest.mark.parametrize("name", ["demo-dalle", "realesrgan-x2"])
def test_a_folder_that_does_not_exist_is_an_error(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "wieghts"
    with pytest.raises(WeightsError, match="weights.folder: .*wieghts does not exist") as error:
        resolve_files(registry.get(name), WeightsConfig(folder=str(folder)))
    assert name in str(error.value)


class Hub(ThreadingHTTPServer):
    """A local server that serves single files like the Hugging Face Hub."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.ranges: list[str] = []
        self.cut_after: int | None = None
        """Bytes after which the next download is interrupted."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.server.files.get(self.path)
        if body is not None:
            self.server.tokens.add(self.headers["Authorization"])
        owner_and_name = "/".join(self.path.split("/")[1:3])
        known = any(path.startswith(f"/{owner_and_name}/") for path in self.server.files)
        if body is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
        else:
            first = self.first_byte(len(body))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", str(len(body) - first))
            body = body[first:]
        self.end_headers()
        if body is not None and self.command == "GET":
            end, self.server.cut_after = self.server.cut_after, None
            self.wfile.write(body[:end])

    def first_byte(self, size: int) -> int:
        """Start a response with the whole file, or with the requested rest of it."""
        requested = self.headers["Range"]
        if requested is None or self.command == "HEAD":
            self.send_response(200)
            return 0
        self.server.ranges.append(requested)
        first = int(requested.removeprefix("bytes=").partition("-")[0])
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        return first

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Do not log."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with Hub() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def publish(hub: Hub, repository: str, filename: str, content: bytes) -> None:
    hub.files[f"/{repository}/resolve/main/{filename}"] = content


def test_files_come_from_a_mirror_once_and_then_from_its_cache(hub: Hub) -> None:
    """The repository has only its new name; the tokenizer is in another repository."""
    publish(hub, "ai-forever/rudalle-Emojich", "pytorch_model.bin", b"weights")
    publish(hub, "shonenkov/rudalle-utils", "bpe.model", b"pieces")
    entry = registry.get("emojich")
    files = resolve_files(entry, WeightsConfig(endpoint=hub.url))
    assert {role: path.read_bytes() for role, path in files.items()} == {
        "weights": b"weights",
        "tokenizer": b"pieces",
    }
    assert any("sberbank-ai/rudalle-Emojich" in request for request in hub.requests)
    hub.requests.clear()
    assert resolve_files(entry, WeightsConfig(endpoint=hub.url, offline=True)) == files
    assert hub.requests == []


def test_an_interrupted_download_is_resumed(hub: Hub) -> None:
    content = bytes(range(256)) * 49_152  # the client keeps whole blocks of 10 MB
    publish(hub, "sberbank-ai/Real-ESRGAN", "RealESRGAN_x2.pth", content)
    hub.cut_after = 12_000_000
    files = resolve_files(registry.get("realesrgan-x2"), WeightsConfig(endpoint=hub.url))
    assert hub.ranges == ["bytes=10485760-"]
    assert files["weights"].read_bytes() == content


def test_the_environment_sets_mirror_token_cache_and_offline_mode(hub: Hub, tmp_path: Path) -> None:
    """In a separate process, because the client reads the environment when it is imported."""
    publish(hub, "sberbank-ai/Real-ESRGAN", "RealESRGAN_x2.pth", b"weights")
    fetch = """
from rudalle_lib import registry
from rudalle_lib.weights.files import resolve_files
print(resolve_files(registry.get("realesrgan-x2"))["weights"])
"""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_of_the_test",
        "HF_HOME": str(tmp_path / "home"),
    }
    for offline in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", fetch],
            env={**environment, "HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=True,
        )
        path = Path(done.stdout.strip())
        assert path.is_relative_to(tmp_path / "home") and path.read_bytes() == b"weights"
        assert "hf_of_the_test" not in done.stdout + done.stderr
    downloads = [request for request in hub.requests if request.endswith("RealESRGAN_x2.pth")]
    assert [request.split()[0] for request in downloads] == ["HEAD", "GET"]
    assert hub.tokens == {"Bearer hf_of_the_test"}


@pytest.mark.parametrize(
    ("endpoint", "token"),
    [
        (None, "hf_of_the_test"),
        ("HUB", "hf_of_the_test"),
        ("HUB/", "hf_of_the_test"),
        ("STRANGER", None),
        ("STRANGER/", None),
        ("HUB/sub", None),
        ("HUB?x=1", None),
    ],
)
def test_the_token_goes_only_to_the_hub_of_the_environment(
    hub: Hub, tmp_path: Path, endpoint: str | None, token: str | None
) -> None:
    """In a separate process, because the client reads the environment when it is imported."""
    fetch = """
import sys
from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.weights.files import resolve_files
try:
    resolve_files(registry.get("realesrgan-x2"), WeightsConfig(endpoint=sys.argv[1] or None))
except Exception as error:
    print(error)
"""
    with Hub() as stranger:
        thread = Thread(target=stranger.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for server in (hub, stranger):
            publish(server, "sberbank-ai/Real-ESRGAN", "RealESRGAN_x2.pth", b"weights")
        named = (endpoint or "").replace("HUB", hub.url).replace("STRANGER", stranger.url)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_of_the_test",
            "HF_HOME": str(tmp_path / "home"),
        }
        done = subprocess.run(
            [sys.executable, "-c", fetch, named], env=environment, capture_output=True, text=True
        )
        stranger.shutdown()
        thread.join()
    assert done.returncode == 0, done.stderr
    assert "hf_of_the_test" not in done.stdout + done.stderr
    found = hub.tokens | stranger.tokens
    assert found <= {f"Bearer {token}" if token else None} and bool(found) >= bool(token)
    assert bool(stranger.requests) is ("STRANGER" in named or stranger.url in named)


def test_a_redirect_of_a_mirror_gets_no_token(hub: Hub) -> None:
    """The client itself sends the token to no other host than the one it was asked to."""
    publish(hub, "sberbank-ai/Real-ESRGAN", "RealESRGAN_x2.pth", b"weights")
    resolve_files(registry.get("realesrgan-x2"), WeightsConfig(endpoint=hub.url))
    assert hub.tokens == {None}


def test_what_a_mirror_sends_is_never_taken_for_the_hubs_own(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "sberbank-ai/Real-ESRGAN", "RealESRGAN_x2.pth", b"of the stranger")
    entry = registry.get("realesrgan-x2")
    resolve_files(entry, WeightsConfig(endpoint=hub.url))
    with pytest.raises(WeightsError):
        resolve_files(entry, WeightsConfig(offline=True))
    with pytest.raises(WeightsError):
        resolve_files(entry, WeightsConfig(offline=True, endpoint="http://127.0.0.1:9"))
    # What the hub itself has sent is also used offline, whatever mirror is named.
    hub.files.clear()
    publish(hub, "sberbank-ai/Real-ESRGAN", "RealESRGAN_x2.pth", b"of the hub")
    monkeypatch.setattr("rudalle_lib.weights.files.HUB", hub.url)
    files = resolve_files(entry, WeightsConfig(endpoint=hub.url))
    assert files["weights"].read_bytes() == b"of the hub"
    other = WeightsConfig(offline=True, endpoint="http://127.0.0.1:9")
    assert resolve_files(entry, other) == files


def test_a_local_folder_is_searched_before_the_hub(hub: Hub, tmp_path: Path) -> None:
    publish(hub, "sberbank-ai/Real-ESRGAN", "RealESRGAN_x2.pth", b"from the hub")
    local = tmp_path / "weights" / "Real-ESRGAN" / "RealESRGAN_x2.pth"
    (tmp_path / "weights").mkdir()
    weights = WeightsConfig(endpoint=hub.url, folder=str(tmp_path / "weights"))
    entry = registry.get("realesrgan-x2")
    assert resolve_files(entry, weights)["weights"].read_bytes() == b"from the hub"
    local.parent.mkdir()
    local.write_bytes(b"from the folder")
    assert resolve_files(entry, weights)["weights"] == local


def test_the_offline_error_says_where_to_put_the_file(hub: Hub, tmp_path: Path) -> None:
    weights = WeightsConfig(endpoint=hub.url, offline=True, folder=str(tmp_path))
    place = tmp_path / "Real-ESRGAN" / "RealESRGAN_x4.pth"
    with pytest.raises(WeightsError, match=f"weights.offline is set.*put it at {place}"):
        resolve_files(registry.get("realesrgan-x4"), weights)
    assert hub.requests == []


def test_a_repository_or_file_that_is_not_on_the_hub_is_named(hub: Hub) -> None:
    weights = WeightsConfig(endpoint=hub.url)
    with pytest.raises(WeightsError, match="sberbank-ai/Real-ESRGAN: .*ai-forever/Real-ESRGAN: "):
        resolve_files(registry.get("realesrgan-x4"), weights)
    publish(hub, "sberbank-ai/Real-ESRGAN", "README.md", b"")
    with pytest.raises(
        WeightsError, match="set weights.folder to FOLDER and put it at FOLDER/Real"
    ):
        resolve_files(registry.get("realesrgan-x4"), weights)
