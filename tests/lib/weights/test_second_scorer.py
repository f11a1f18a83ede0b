"""The second scorer: a ruCLIP by name, or a CLIP of open_clip, for which a stand-in stands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rudalle_lib import registry
from rudalle_lib.checks.preflight import check_extras, check_weights
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import ScoreConfig, WeightsConfig
from rudalle_lib.errors import ConfigError, SettingsError, WeightsError
from rudalle_lib.pipeline.stages import fingerprints, weight_digests
from rudalle_lib.schema.records import ShardSpec, TranslationRecord
from rudalle_lib.weights.loading import LoadedWithTokenizer
from rudalle_lib.weights.second_scorer import OpenClipScorer, load_second_scorer, second_of
from tests.support.stand_in_open_clip import stand_in, write_tiny_clip

NAME = "open_clip:nobody/tiny-clip"
CPU = torch.device("cpu")
TRANSLATIONS = [
    TranslationRecord("a", "a cat", "en", "кошка"),
    TranslationRecord("b", "круг", "ru", "круг"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as in a clone of a repository in the layout of open_clip."""
    folder = tmp_path_factory.mktemp("weights")
    write_tiny_clip(folder / "tiny-clip")
    return folder


@pytest.fixture(autouse=True)
def open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", stand_in())


def load(folder: Path, name: str = NAME) -> Any:
    weights = WeightsConfig(folder=str(folder), offline=True)
    return load_second_scorer(name, weights, CPU, torch.float32)


def test_features_have_unit_length_and_each_text_and_image_its_own(folder: Path) -> None:
    scorer = load(folder)
    assert isinstance(scorer, OpenClipScorer)
    texts = scorer.text_features(["a cat", "a dog", "a cat"])
    images = torch.randint(0, 256, (5, 3, 20, 24), dtype=torch.uint8)
    features = scorer.image_features(images)
    for found in (texts, features):
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
        assert found.dtype == torch.float32
    assert texts[0].equal(texts[2]) and not texts[0].allclose(texts[1])
    torch.testing.assert_close(scorer.image_features(images[3:4]), features[3:4])
    assert scorer.image_features(images[:0]).shape[0] == 0


@pytest.mark.parametrize(
    ("name", "setting", "texts"),
    [
        (NAME, "auto", {"a": "a cat", "b": "круг"}),
        (NAME, "russian", {"a": "кошка", "b": "круг"}),
        ("demo-ruclip", "auto", {"a": "кошка", "b": "круг"}),
        ("demo-ruclip", "original", {"a": "a cat", "b": "круг"}),
    ],
)
def test_which_texts_it_reads(
    folder: Path, tiny_stack: Path, name: str, setting: str, texts: dict[str, str]
) -> None:
    loaded = load(folder if name == NAME else tiny_stack, name)
    section = ScoreConfig.model_validate({"second_model": name, "second_text": setting})
    second = second_of(loaded, section, TRANSLATIONS)
    assert second.texts == texts
    assert isinstance(loaded, LoadedWithTokenizer) is (name == "demo-ruclip")


def test_its_weights_are_part_of_the_fingerprint_of_scores(folder: Path, tiny_stack: Path) -> None:
    shard = ShardSpec(0, "plan", 1, "digest")
    plain = RunConfig.model_validate({"weights": {"folder": str(tiny_stack), "offline": True}})
    section = plain.score.model_copy(update={"second_model": "demo-ruclip"})
    config = plain.model_copy(update={"score": section})
    weights = weight_digests(config)
    assert weights["second_scorer"] == weights["score"]
    before, after = (
        fingerprints(config, {**weights, "second_scorer": digest}, shard) for digest in "ab"
    )
    assert {stage for stage in before if before[stage] != after[stage]} == {"score", "publish"}
    assert "second_scorer" not in weight_digests(plain)


def test_files_are_checked_before_a_run(folder: Path, tiny_stack: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for path in (*tiny_stack.iterdir(), folder / "tiny-clip"):
        (weights / path.name).symlink_to(path)
    settings = {
        "weights": {"folder": str(weights), "offline": True},
        "score": {"second_model": NAME},
    }
    config = RunConfig.model_validate(settings)
    check_weights(config, weight_digests(config))
    (weights / "tiny-clip").unlink()
    (weights / "tiny-clip").mkdir()
    for name in ("open_clip_model.safetensors", "open_clip_config.json"):
        (weights / "tiny-clip" / name).write_text("{}")
    with pytest.raises(WeightsError, match="it has no model_cfg"):
        check_weights(config, weight_digests(config))


def test_weights_of_another_network_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "tiny-clip"
    write_tiny_clip(target)
    config = {"model_cfg": {"embed_dim": 16}}
    (target / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="open_clip cannot load.*size mismatch"):
        load(tmp_path)


def test_names_that_are_none_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown scorer 'ruclip'.*known are demo-ruclip"):
        registry.second_scorer("ruclip")
    assert registry.second_scorer(NAME).repository == "nobody/tiny-clip"


def test_without_the_package_one_sentence_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(SettingsError, match=r"pip install 'rudalle-flows\[open-clip\]'"):
        load(folder)


@pytest.mark.parametrize(
    ("score", "package"), [({"hashes": True}, "imagehash"), ({"second_model": NAME}, "open_clip")]
)
def test_missing_packages_are_found_before_a_run(
    monkeypatch: pytest.MonkeyPatch, score: dict[str, Any], package: str
) -> None:
    config = RunConfig.model_validate({"score": score})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    check_extras(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=f"needs the package {package}"):
        check_extras(config)
