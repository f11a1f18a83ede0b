"""Models load from their published file layouts, ready for inference."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import ConfigError, WeightsError
from rudalle_lib.models.dalle import STORED_MASKS, Dalle, DalleConfig
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.weights.loading import (
    load_decoder,
    load_scorer,
    load_translator,
    load_upscaler,
    load_vqgan,
)
from tests.support.tiny_stack import letters_as_bpe, write_tiny_stack

Shrink = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> WeightsConfig:
    return WeightsConfig(folder=str(write_tiny_stack(tmp_path_factory.mktemp("stack"))))


@pytest.fixture
def shrink(monkeypatch: pytest.MonkeyPatch) -> Shrink:
    """Makes a published model small, so that its file layout can be tested quickly."""

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
    """Write a checkpoint in the file layout of its repository."""
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
    image = load_vqgan("demo-vqgan", stack).model.decode(tokens)
    assert load_upscaler("demo-realesrgan-x2", stack).model(image).shape == (1, 3, 64, 64)
    assert load_translator("demo-marian", stack).translate(["круг"]) == ["круг"]
    for network in (decoder.model, scorer.model):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_have_the_requested_dtype_except_where_it_would_be_visible(
    stack: WeightsConfig,
) -> None:
    vqgan = load_vqgan("demo-vqgan", stack, dtype=torch.bfloat16).model
    upscaler = load_upscaler("demo-realesrgan-x2", stack, dtype=torch.bfloat16).model
    for parts, last in ((vqgan.decoder, "conv_out"), (upscaler, "conv_last")):
        for name, parameter in parts.named_parameters():
            exact = torch.float32 if name.startswith(last) else torch.bfloat16
            assert parameter.dtype is exact, name
    assert {p.dtype for p in vqgan.encoder.parameters()} == {torch.float32}
    images = vqgan.decode(torch.zeros(1, 4, 4, dtype=torch.int64))
    assert images.dtype is torch.float32


@pytest.mark.parametrize("name", ["malevich-v3", "malevich-v2", "kandinsky-12b"])
def test_published_decoders_load(tmp_path: Path, shrink: Shrink, name: str) -> None:
    """In half precision and a wrapper, with the three masks that the reference stores."""
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


def test_weights_of_another_size_are_rejected(tmp_path: Path, shrink: Shrink) -> None:
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


def test_a_tokenizer_of_another_network_is_rejected(stack: WeightsConfig, tmp_path: Path) -> None:
    copy = copy_model(stack, "demo-dalle", tmp_path)
    lines = letters_as_bpe().splitlines()
    count = int(lines[0].split()[0])
    more = [f"{0x3400 + i} {count + 4 + i}" for i in range(5)]
    content = "\n".join([f"{count + 5} 0", *lines[1:-1], *more, "1 0 2 3"])
    (tmp_path / "demo-dalle" / "bpe.model").write_text(content, "utf-8")
    with pytest.raises(
        WeightsError, match="pieces, but its network has embeddings for .* does not belong"
    ):
        load_decoder("demo-dalle", copy)


@pytest.mark.parametrize("content", ["", "[]", '{"ch": 8}', '{"resolution": "big"}'])
def test_a_bad_architecture_file_is_named(
    stack: WeightsConfig, tmp_path: Path, content: str
) -> None:
    copy = copy_model(stack, "demo-vqgan", tmp_path)
    (tmp_path / "demo-vqgan" / "config.json").write_text(content)
    with pytest.raises(WeightsError, match="demo-vqgan/config.json"):
        load_vqgan("demo-vqgan", copy)


def test_unknown_names_and_names_of_other_kinds_are_rejected(stack: WeightsConfig) -> None:
    with pytest.raises(ConfigError, match="unknown decoder 'demo-dale'.*demo-dalle"):
        load_decoder("demo-dale", stack)
    with pytest.raises(ConfigError, match="'demo-dalle' is a decoder, expected a vqgan"):
        load_vqgan("demo-dalle", stack)


def test_config_json_may_have_unknown_keys(stack: WeightsConfig, tmp_path: Path) -> None:
    copy = copy_model(stack, "demo-ruclip", tmp_path)
    path = tmp_path / "demo-ruclip" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "ruclip"}))
    assert load_scorer("demo-ruclip", copy).model.config.embed_dim == 16
