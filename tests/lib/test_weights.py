"""Models are found in a folder, the package or a hub, and load from their published layouts."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rudalle_lib import registry
from rudalle_lib.config import WeightsConfig
from rudalle_lib.errors import ConfigError, WeightsError
from rudalle_lib.models.dalle import STORED_MASKS, Dalle, DalleConfig
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.weights import (
    digest,
    file_digest,
    load_decoder,
    load_scorer,
    load_translator,
    load_upscaler,
    load_vqgan,
    resolve_files,
)
from tests.tiny_stack import letters_as_bpe, write_tiny_stack

Shrink = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> WeightsConfig:
    return WeightsConfig(folder=str(write_tiny_stack(tmp_path_factory.mktemp("stack"))))


@pytest.fixture
def shrink(monkeypatch: pytest.MonkeyPatch) -> Shrink:
    """Makes a published model small, so that its file layout can be tested in no time."""

    def shrunk(name: str, **sizes: Any) -> dict[str, Any]:
        entry = registry.get(name)
        architecture = {**entry.architecture, **sizes}
        small = dataclasses.replace(entry, architecture=MappingProxyType(architecture))
        monkeypatch.setattr(registry, "_ENTRIES", {**registry._ENTRIES, name: small})
        return architecture

    return shrunk


SMALL_DALLE = dict(
    num_layers=2, hidden_size=16, num_heads=2, text_vocab_size=200, text_length=8,
    image_vocab_size=32, image_height=4, image_width=4,
)  # fmt: skip
SMALL_VQGAN = dict(resolution=16, ch=32, ch_mult=(1, 1), n_embed=16, z_channels=32, embed_dim=32)


def save_published(folder: Path, name: str, content: Any) -> WeightsConfig:
    """Lay a checkpoint out as in a copy of its repository."""
    entry = registry.get(name)
    for role, filename in entry.files.items():
        path = folder / str(entry.repository_of(role)).split("/")[1] / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        if role == "weights":
            torch.save(content, path)
        else:
            path.write_text(letters_as_bpe(), "utf-8")
    return WeightsConfig(folder=str(folder))


def assert_same(network: torch.nn.Module, state: dict[str, Tensor]) -> None:
    found = network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_the_whole_stack_loads_ready_for_inference(stack: WeightsConfig) -> None:
    decoder = load_decoder("demo-dalle", stack)
    scorer = load_scorer("demo-ruclip", stack)
    ids = torch.tensor([scorer.tokenizer.encode_clip("круг", 40).ids])
    assert scorer.model.encode_text(ids).shape == (1, 16)
    text = torch.tensor([decoder.tokenizer.encode_text("круг", 40).ids])
    tokens = decoder.model(text)[:, -1:, -32:].argmax(-1).expand(1, 16).reshape(1, 4, 4)
    picture = load_vqgan("demo-vqgan", stack).model.decode(tokens)
    assert load_upscaler("demo-realesrgan-x2", stack).model(picture).shape == (1, 3, 64, 64)
    assert load_translator("demo-marian", stack).translate(["круг"]) == ["круг"]
    for network in (decoder.model, scorer.model):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_come_in_the_dtype_asked_for(stack: WeightsConfig) -> None:
    model = load_vqgan("demo-vqgan", stack, dtype=torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["malevich-v3", "malevich-v2", "kandinsky-12b"])
def test_published_decoders_load(tmp_path: Path, shrink: Shrink, name: str) -> None:
    """Half precision, in a wrapper, with the three masks that the reference stores."""
    network = Dalle(DalleConfig(**shrink(name, **SMALL_DALLE))).half()
    content = {f"module.{key}": tensor for key, tensor in network.state_dict().items()}
    content |= {f"module.{key}": torch.ones(24, 24, dtype=torch.bool) for key in STORED_MASKS}
    weights = save_published(tmp_path, name, content)
    loaded = load_decoder(name, weights, dtype=torch.float16)
    assert_same(loaded.model, network.state_dict())
    assert loaded.model.config.version == ("v2" if name == "malevich-v2" else "v3")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("круг")) == "круг"


def test_the_published_vqgan_loads_without_its_loss(tmp_path: Path, shrink: Shrink) -> None:
    network = VqGan(VqGanConfig(**shrink("vqgan-f8", **SMALL_VQGAN)))
    state = network.state_dict()
    loss = {"loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1)}
    weights = save_published(tmp_path, "vqgan-f8", {"state_dict": {**state, **loss}, "epoch": 1})
    assert_same(load_vqgan("vqgan-f8", weights).model, state)


def test_the_published_dwt_vqgan_loads_from_its_wrapper(tmp_path: Path, shrink: Shrink) -> None:
    network = VqGan(VqGanConfig(**shrink("vqgan-f8-dwt", **SMALL_VQGAN)))
    state = {f"model.{key}": tensor for key, tensor in network.state_dict().items()}
    weights = save_published(tmp_path, "vqgan-f8-dwt", {"state_dict": state})
    assert_same(load_vqgan("vqgan-f8-dwt", weights).model, network.state_dict())


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_published_upscalers_load(tmp_path: Path, shrink: Shrink, scale: int) -> None:
    name = f"realesrgan-x{scale}"
    shrink(name, num_features=8, num_blocks=1, growth=4)
    state = RrdbNet(RrdbNetConfig(**registry.get(name).architecture)).state_dict()
    key = {2: "params_ema", 4: "params"}.get(scale)
    weights = save_published(tmp_path, name, {key: state} if key else state)
    assert_same(load_upscaler(name, weights).model, state)


def test_weights_of_another_size_are_refused(tmp_path: Path, shrink: Shrink) -> None:
    network = Dalle(DalleConfig(**shrink("malevich-v3", **SMALL_DALLE)))
    weights = save_published(tmp_path, "malevich-v3", network.state_dict())
    shrink("malevich-v3", image_width=5, num_layers=3)
    expected = (
        r"keys missing: transformer.layers.2.*image_col_embeddings.weight: expected \[5, 16\]"
    )
    with pytest.raises(WeightsError, match=expected):
        load_decoder("malevich-v3", weights)


def copy_model(stack: WeightsConfig, name: str, folder: Path) -> WeightsConfig:
    (folder / name).mkdir()
    for path in (Path(str(stack.folder)) / name).iterdir():
        (folder / name / path.name).write_bytes(path.read_bytes())
    return WeightsConfig(folder=str(folder))


def test_a_tokenizer_that_the_network_does_not_know_is_refused(
    stack: WeightsConfig, tmp_path: Path
) -> None:
    copy = copy_model(stack, "demo-dalle", tmp_path)
    lines = letters_as_bpe().splitlines()
    count = int(lines[0].split()[0])
    more = [f"{0x3400 + i} {count + 4 + i}" for i in range(5)]
    content = "\n".join([f"{count + 5} 0", *lines[1:-1], *more, "1 0 2 3"])
    (tmp_path / "demo-dalle" / "bpe.model").write_text(content, "utf-8")
    with pytest.raises(WeightsError, match="pieces, its network knows .* does not belong"):
        load_decoder("demo-dalle", copy)


@pytest.mark.parametrize("content", ["", "[]", '{"ch": 8}', '{"resolution": "big"}'])
def test_a_bad_architecture_file_is_named(
    stack: WeightsConfig, tmp_path: Path, content: str
) -> None:
    copy = copy_model(stack, "demo-vqgan", tmp_path)
    (tmp_path / "demo-vqgan" / "config.json").write_text(content)
    with pytest.raises(WeightsError, match="demo-vqgan/config.json"):
        load_vqgan("demo-vqgan", copy)


def test_unknown_and_mistaken_names_are_refused(stack: WeightsConfig) -> None:
    with pytest.raises(ConfigError, match="unknown decoder 'demo-dale'.*demo-dalle"):
        load_decoder("demo-dale", stack)
    with pytest.raises(ConfigError, match="'demo-dalle' is a decoder, expected a vqgan"):
        load_vqgan("demo-dalle", stack)


def test_digests_follow_the_content_of_files(stack: WeightsConfig, tmp_path: Path) -> None:
    copy = copy_model(stack, "demo-vqgan", tmp_path)
    entry = registry.get("demo-vqgan")
    files = resolve_files(entry, copy)
    before = digest(entry, files)
    assert before == digest(entry, resolve_files(entry, stack))  # the place does not matter
    assert len(before) == 32
    weights = files["weights"]
    assert file_digest(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()
    tensors = load_file(weights)
    tensors["quant_conv.bias"][0] += 1
    save_file(tensors, weights)
    os.utime(weights, ns=(1, 1))  # a clock may be too coarse to tell two quick writes apart
    assert digest(entry, files) != before


def test_a_file_is_verified_against_the_digest_of_the_registry(stack: WeightsConfig) -> None:
    entry = registry.get("demo-vqgan")
    expected = dataclasses.replace(entry, sha256=MappingProxyType({"weights": "0" * 64}))
    with pytest.raises(WeightsError, match="model.safetensors of demo-vqgan has SHA-256 .* 0000"):
        resolve_files(expected, stack)


def test_a_packaged_file_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rudalle_lib.weights.PACKAGED", tmp_path)
    with pytest.raises(WeightsError, match="expected .*demo-dalle/model.safetensors.*train-demo"):
        resolve_files(registry.get("demo-dalle"))


class Hub(ThreadingHTTPServer):
    """A server on loopback that answers as the Hugging Face hub does for single files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.server.files.get(self.path)
        owner_and_name = "/".join(self.path.split("/")[1:3])
        known = any(path.startswith(f"/{owner_and_name}/") for path in self.server.files)
        if body is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body is not None and self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Say nothing."""


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
    """The repository is under its new name only; the tokenizer lies in another repository."""
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


def test_a_local_folder_is_looked_into_before_the_hub(hub: Hub, tmp_path: Path) -> None:
    publish(hub, "sberbank-ai/Real-ESRGAN", "RealESRGAN_x2.pth", b"from the hub")
    local = tmp_path / "weights" / "Real-ESRGAN" / "RealESRGAN_x2.pth"
    weights = WeightsConfig(endpoint=hub.url, folder=str(tmp_path / "weights"))
    entry = registry.get("realesrgan-x2")
    assert resolve_files(entry, weights)["weights"].read_bytes() == b"from the hub"
    local.parent.mkdir(parents=True)
    local.write_bytes(b"from the folder")
    assert resolve_files(entry, weights)["weights"] == local


def test_offline_says_so_and_where_to_put_the_file(hub: Hub, tmp_path: Path) -> None:
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


def test_json_of_the_published_ruclip_may_say_more(stack: WeightsConfig, tmp_path: Path) -> None:
    copy = copy_model(stack, "demo-ruclip", tmp_path)
    path = tmp_path / "demo-ruclip" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "ruclip"}))
    assert load_scorer("demo-ruclip", copy).model.config.embed_dim == 16
