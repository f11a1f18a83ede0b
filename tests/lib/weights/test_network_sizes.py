"""Sizes in a `config.json` are checked before a network is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import WeightsError
from rudalle_lib.models.dalle import DalleConfig
from rudalle_lib.models.ruclip import RuClipConfig
from rudalle_lib.models.vqgan import VqGanConfig
from rudalle_lib.weights.files import resolve_files
from rudalle_lib.weights.loading import make_network, network_config
from rudalle_lib.weights.model_files import BLUEPRINTS, check_files
from rudalle_lib.weights.network_sizes import check_sizes
from tests.support.limited_process import call_limited
from tests.support.tiny_stack import write_tiny_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stack(tmp_path_factory.mktemp("stack"))


@pytest.mark.parametrize("name", registry.names())
def test_published_sizes_are_accepted(name: str) -> None:
    entry = registry.get(name)
    if entry.kind == "translator":
        return
    kind = "small scorer" if "merges" in entry.files else entry.kind
    check_sizes(BLUEPRINTS[kind].config, entry.architecture)
    if entry.packaged:
        config: Any = network_config(entry, resolve_files(entry), BLUEPRINTS[kind].config)
        assert config


@pytest.mark.parametrize(
    ("config", "values", "reason"),
    [
        (
            DalleConfig,
            {"num_layers": 100_000},
            "num_layers: expected a number from 1 to 256, found 10",
        ),
        (
            DalleConfig,
            {"hidden_size": 10**9},
            "hidden_size: expected a number from 1 to 16,777,216",
        ),
        (DalleConfig, {"hidden_size": 10**30}, "found a very large number"),
        (DalleConfig, {"text_vocab_size": -(2**70)}, "text_vocab_size: expected a number"),
        (DalleConfig, {"num_heads": 2.0}, "num_heads: expected a whole number, found 2.0"),
        (DalleConfig, {"num_heads": True}, "num_heads: expected a whole number, found True"),
        (DalleConfig, {"num_heads": None}, "num_heads: expected a whole number, found NoneType"),
        (DalleConfig, {"num_heads": "2"}, "num_heads: expected a whole number, found '2'"),
        (DalleConfig, {"sandwich_norm": 1}, "sandwich_norm: expected true or false, found 1"),
        (DalleConfig, {"version": "v" * 1000}, "version: expected a short text"),
        (DalleConfig, {"version": {"a": []}}, "version: expected a text, found dict"),
        (VqGanConfig, {"ch_mult": [1] * 17}, "ch_mult: expected at most 16 values, found 17"),
        (VqGanConfig, {"ch_mult": [1, 10**9]}, "ch_mult: expected a number from 1 to"),
        (VqGanConfig, {"ch_mult": 1}, "ch_mult: expected a list of numbers, found 1"),
        (VqGanConfig, {"decoder_ch": 1.5}, "decoder_ch: expected a whole number"),
        (VqGanConfig, {"num_res_blocks": 257}, "num_res_blocks: expected a number from 1 to 256"),
        (RuClipConfig, {"mean": [0.1, float("nan")]}, "mean: expected a finite number, found nan"),
        (RuClipConfig, {"std": [float("inf")]}, "std: expected a finite number"),
    ],
)
def test_other_values_are_errors(config: type, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError) as raised:
        check_sizes(config, values)
    assert reason in str(raised.value) and len(str(raised.value)) < 200


def check_limited(folder: str, name: str) -> None:
    entry = registry.get(name)
    check_files(entry, resolve_files(entry, WeightsConfig(folder=folder, offline=True)))


def copy_stack(stack: Path, folder: Path, name: str, content: str | bytes) -> str:
    """A folder with a model whose `config.json` has other content."""
    (folder / name).mkdir(parents=True)
    for path in (stack / name).iterdir():
        (folder / name / path.name).write_bytes(path.read_bytes())
    data = content.encode() if isinstance(content, str) else content
    (folder / name / "config.json").write_bytes(data)
    return str(folder)


BOMBS = [
    ("demo-dalle", '{"num_layers": 100000}'),
    ("demo-dalle", '{"text_vocab_size": 1000000000}'),
    ("demo-dalle", '{"hidden_size": 16777216, "num_heads": 1}'),
    ("demo-dalle", '{"image_height": 16777216, "image_width": 16777216}'),
    ("demo-dalle", '{"text_length": 16777215, "text_vocab_size": 16777216}'),
    ("demo-dalle", '{"num_layers": ' + "9" * 5_000 + "}"),
    ("demo-dalle", '{"num_layers": 1e999}'),
    ("demo-dalle", "[" * 100_000),
    ("demo-dalle", '{"a":' * 100_000),
    ("demo-dalle", '{"a": "' + "x" * 2**21 + '"}'),
    ("demo-dalle", b"\xff\xfe{"),
    ("demo-vqgan", '{"ch": 16777216, "z_channels": 16777216}'),
    ("demo-vqgan", '{"ch_mult": [0, 0, 0, 0]}'),
    ("demo-vqgan", '{"norm_groups": 0}'),
    ("demo-vqgan", '{"num_res_blocks": 100000}'),
    ("demo-vqgan", '{"attention_resolutions": [' + "4," * 99_999 + "4]}"),
    ("demo-ruclip", '{"vision_layers": 10000000}'),
    ("demo-ruclip", '{"vision_patch_size": 0}'),
    ("demo-ruclip", '{"image_resolution": 16777216, "vision_patch_size": 1}'),
    ("demo-ruclip", '{"transformer_heads": 0}'),
    ("demo-realesrgan-x2", '{"num_blocks": 1000000}'),
    ("demo-realesrgan-x2", '{"num_features": 16777216, "growth": 16777216}'),
    ("demo-realesrgan-x2", '{"scale": 3}'),
    ("demo-marian", '{"encoder_layers": 100000}'),
    ("demo-marian", '{"vocab_size": 1000000000}'),
]


@pytest.mark.parametrize(("name", "content"), BOMBS)
def test_a_bomb_is_one_sentence(
    name: str, content: str | bytes, stack: Path, tmp_path: Path
) -> None:
    folder = copy_stack(stack, tmp_path, name, content)
    found = call_limited(check_limited, folder, name)
    assert found.error is not None
    assert "config.json" in found.error or "does not fit" in found.error
    assert len(found.error) < 2_000
    assert found.seconds < 10 and found.megabytes < 300


KEYS = {
    "demo-dalle": "num_layers hidden_size num_heads version image_height sandwich_norm".split(),
    "demo-vqgan": "ch ch_mult norm_groups resolution decoder_ch dwt n_embed".split(),
    "demo-ruclip": "vision_heads vision_patch_size mean transformer_width eos_id".split(),
    "demo-realesrgan-x2": "scale num_features num_blocks growth".split(),
}
VALUES: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers(-2, 300) | st.integers() | st.floats()
    | st.text(max_size=3) | st.lists(st.integers(0, 4), max_size=5) | st.just({})
)  # fmt: skip


@settings(deadline=20_000, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("name", KEYS)
def test_any_sizes_are_a_network_or_one_sentence(
    name: str, stack: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changes = data.draw(st.dictionaries(st.sampled_from(KEYS[name]), VALUES, min_size=1))
    values = {**json.loads((stack / name / "config.json").read_text()), **changes}
    folder = copy_stack(stack, tmp_path_factory.mktemp("sizes"), name, json.dumps(values))
    entry = registry.get(name)
    try:
        check_files(entry, resolve_files(entry, WeightsConfig(folder=folder)))
    except WeightsError as error:
        assert len(str(error)) < 3_000


def test_a_network_that_cannot_be_built_is_named() -> None:
    def network(_: object) -> Any:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(
        WeightsError, match="cannot build demo-vqgan from the sizes in the registry"
    ):
        make_network(registry.get("demo-vqgan"), {}, network, 7)
