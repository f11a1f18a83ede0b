"""Weights of one's own are found by name, fetched once, and checked against their base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rudalle_lib import registry
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import ConfigError, SettingsError, WeightsError
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.storage.storage import Storage
from rudalle_lib.weights.files import digest, resolve_files
from rudalle_lib.weights.loading import load_decoder


@pytest.fixture
def own(tiny_stack: Path, tmp_path: Path) -> Callable[..., WeightsConfig]:
    """Makes the section `weights` with a copy of a tiny model under the name `mine`."""

    def make(model: str = "demo-dalle", base: str = "", folder: str = "") -> WeightsConfig:
        copy = tmp_path / "mine"
        if not copy.exists():
            shutil.copytree(tiny_stack / model, copy)
        named = {"base": base or model, "folder": folder or str(copy)}
        return WeightsConfig.model_validate(
            {"folder": str(tiny_stack), "offline": not folder, "models": {"mine": named}}
        )

    return make


def test_a_name_loads_the_weights_in_its_folder(own: Callable[..., WeightsConfig]) -> None:
    weights = own()
    loaded = load_decoder("mine", weights)
    assert loaded.entry.licence == registry.get("demo-dalle").licence
    assert loaded.model.config.num_layers == 2
    assert weights.find("demo-dalle").base == ""


def test_digests_are_those_of_the_content_wherever_it_is(
    own: Callable[..., WeightsConfig], tiny_stack: Path
) -> None:
    weights = own()
    base = registry.get("demo-dalle")
    files = resolve_files(weights.find("mine"), weights)
    assert digest(weights.find("mine"), files) == digest(base, resolve_files(base, weights))
    files["weights"].write_bytes(b"other")
    assert digest(weights.find("mine"), files) != digest(base, resolve_files(base, weights))


def test_names_are_found_by_every_key_that_names_a_model(
    own: Callable[..., WeightsConfig],
) -> None:
    weights = own("demo-vqgan")
    config = RunConfig.model_validate({
        "weights": weights.model_dump(), "decode": {"model": "mine"},
    })  # fmt: skip
    assert config.generate.image_encoder == "mine"
    assert set(weight_digests(config)) == {"translate", "generate", "decode", "score", "upscale"}


def test_settings_without_names_keep_their_digests() -> None:
    assert "models" not in RunConfig().digested()["weights"]
    assert hash(WeightsConfig()) == hash(WeightsConfig(models={}))


def test_the_base_may_be_a_published_model(own: Callable[..., WeightsConfig]) -> None:
    entry = own(base="malevich-v3").find("mine", "decoder")
    assert dict(entry.files) == {
        "weights": "model.safetensors", "config": "config.json", "tokenizer": "bpe.model",
    }  # fmt: skip
    assert entry.architecture["num_layers"] == 24


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"demo-dalle": {"base": "demo-dalle", "folder": "x"}}, "registered model, which it would"),
        ({"opus-mt-de-ru": {"base": "demo-marian", "folder": "x"}}, "registered model"),
        ({"mine": {"base": "malevic-v3", "folder": "x"}}, "did you mean malevich-v3"),
        ({"mine": {"folder": "x"}}, "The key weights.models.mine.base is missing"),
        ({"Mine!": {"base": "demo-dalle", "folder": "x"}}, "expected a name of small letters"),
        ({"mine": {"base": "demo-dalle", "folder": "https://a/b"}}, "URL of object storage"),
        ({"mine": {"base": "demo-dalle", "flder": "x"}}, "did you mean folder"),
    ],
)
def test_wrong_names_bases_and_folders_are_errors(
    models: dict[str, dict[str, str]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.parse(json.dumps({"weights": {"models": models}}))


def test_another_kind_and_an_unknown_name_are_errors(own: Callable[..., WeightsConfig]) -> None:
    with pytest.raises(ConfigError, match="'mine' is a decoder, expected a vqgan"):
        own().find("mine", "vqgan")
    with pytest.raises(ConfigError, match="did you mean mine.*known are .*mine"):
        own().find("mien", "decoder")


def test_a_missing_folder_or_file_is_an_error(
    own: Callable[..., WeightsConfig], tmp_path: Path
) -> None:
    weights = own()
    (tmp_path / "mine" / "bpe.model").unlink()
    with pytest.raises(WeightsError, match="weights.models.mine: .*mine has no file bpe.model"):
        load_decoder("mine", weights)
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(WeightsError, match="no folder .*mine.*model.safetensors, config.json"):
        load_decoder("mine", weights)


@pytest.mark.parametrize("base", ["malevich-v3", "demo-dalle"])
def test_a_network_of_other_sizes_is_an_error(
    base: str, own: Callable[..., WeightsConfig], tmp_path: Path
) -> None:
    weights = own(base=base)
    path = tmp_path / "mine" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 7}))
    with pytest.raises(WeightsError, match=f"of base {base}: .*hidden_size is 7, expected"):
        load_decoder("mine", weights)


def test_the_environment_bounds_the_folder(
    own: Callable[..., WeightsConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUDALLE_ALLOW_INPUTS", "/nowhere")
    with pytest.raises(SettingsError, match="weights.models.mine.folder .*RUDALLE_ALLOW_INPUTS"):
        resolve_files(own().find("mine"), own())


def test_a_url_is_fetched_once_for_each_version(
    own: Callable[..., WeightsConfig],
    tiny_stack: Path,
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = own(folder=f"{s3_url}/mine")
    offline = weights.model_copy(update={"offline": True})
    with pytest.raises(WeightsError, match="has not been fetched before"):
        load_decoder("mine", offline)
    with pytest.raises(WeightsError, match="/mine has no file model.safetensors"):
        load_decoder("mine", weights)
    storage = Storage(f"{s3_url}/mine")
    for path in sorted((tiny_stack / "demo-dalle").iterdir()):
        storage.write_bytes(path.name, path.read_bytes())
    first = resolve_files(weights.find("mine"), weights)
    assert load_decoder("mine", weights).model.config.num_layers == 2
    assert first == resolve_files(weights.find("mine"), weights)
    assert first == resolve_files(offline.find("mine"), offline)
    storage.write_bytes("bpe.model", first["tokenizer"].read_bytes() + b"\n")
    second = resolve_files(weights.find("mine"), weights)
    assert second["tokenizer"] != first["tokenizer"]
    assert second["tokenizer"].read_bytes() == first["tokenizer"].read_bytes() + b"\n"
