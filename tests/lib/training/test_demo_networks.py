"""The demo's networks train, resume where they were stopped, and export what loads again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rudalle_lib.demo.drawing import PALETTE
from rudalle_lib.training import decoder, super_resolution, vqgan, vqgan_codes
from rudalle_lib.training.scene_tokens import PLAIN
from rudalle_lib.training.vqgan import EmaCodebook


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small = replace(vqgan.CONFIG, ch=8, ch_mult=(1, 1, 1, 1), n_embed=16)
        changes = {"CONFIG": small, "UNQUANTISED_STEPS": 2, "PRICE_FROM": 2, "PRICE_RAMP": 1}
        for name, value in {**changes, "CROP_BATCH": 2, "FULL_BATCH": 2}.items():
            patch.setattr(vqgan, name, value)
        yield


@pytest.fixture(scope="module")
def vqgan_folder(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vqgan")
    folders = ["--work", str(folder / "work"), "--out", str(folder / "out")]
    vqgan.main([*folders, "--crop-steps", "4", "--full-steps", "2", "--settle-steps", "1"])
    return folder / "out"


def test_vqgan_exports_what_loads_again(vqgan_folder: Path) -> None:
    model = vqgan.load_vqgan(vqgan_folder)
    pictures = vqgan.pictures(random.Random(0), 1)
    assert vqgan.round_trip(model, pictures).shape == pictures.shape
    assert (vqgan_folder / "MODEL_CARD.md").read_text().startswith("# demo-vqgan")


def test_codes_get_their_names_and_keep_them(
    tmp_path: Path, vqgan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vqgan_codes, "CROP_BATCH", 2)
    monkeypatch.setattr(vqgan_codes, "FULL_BATCH", 2)
    monkeypatch.setattr(vqgan_codes, "START_PICTURES", 32)
    folder = shutil.copytree(vqgan_folder, tmp_path / "vqgan")
    command = ["--work", str(tmp_path / "w"), "--vqgan", str(folder), "--steps"]
    vqgan_codes.main([*command, "2"])
    assert "vqgan_codes --steps 2" in (folder / "MODEL_CARD.md").read_text()
    vqgan_codes.main([*command, "3"])
    state = torch.load(tmp_path / "w" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    before, after = vqgan.load_vqgan(vqgan_folder), vqgan.load_vqgan(folder)
    assert not torch.equal(before.encoder.conv_in.weight, after.encoder.conv_in.weight)
    assert not torch.equal(before.quantize.embed.weight, after.quantize.embed.weight)


def test_codes_start_where_their_cells_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqgan_codes, "START_PICTURES", 64)
    weights = Path(vqgan.__file__).parents[1] / "demo" / "weights" / "demo-vqgan"
    model = vqgan_codes.with_vocabulary(vqgan.load_vqgan(weights))
    vqgan_codes.start_codes(model, random.Random(0))
    tokens, pictures = vqgan_codes.make_batch(random.Random(1), 8)
    plain = tokens < len(PLAIN)
    right = model.encode(pictures)[plain] == tokens[plain]
    assert right.float().mean() > 0.5


def test_crops_are_whole_cells_about_an_edge() -> None:
    tokens, pictures = vqgan_codes.make_batch(random.Random(2), 16, crop=True)
    assert tokens.shape == (16, 8, 8)
    assert pictures.shape == (16, 3, 64, 64)
    assert (tokens >= len(PLAIN)).flatten(1).any(1).all()
    colour = torch.tensor(PALETTE["red"]) / 127.5 - 1
    red = (pictures - colour[:, None, None]).abs().amax(1) < 0.01
    whole = red.view(16, 8, 8, 8, 8).transpose(2, 3).flatten(3).all(3)
    assert torch.equal(whole, tokens == PLAIN["red"])


def test_vqgan_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    vqgan.train(tmp_path, vqgan.phases(3, 0, 0, 0.5, 0.1), 1)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    vqgan.train(tmp_path, vqgan.phases(3, 2, 1, 0.5, 0.1), 1)
    resumed = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert resumed["step"] == 6
    assert resumed["minutes"] > state["minutes"]


def test_a_price_moves_features_to_the_frequent_code() -> None:
    book = EmaCodebook(2, 1)
    book.codes.copy_(torch.tensor([[0.0], [1.0]]))
    book.counts.copy_(torch.tensor([99.0, 1.0]))
    features = torch.tensor([[0.4], [0.6], [1.0]])
    assert book.choose(features).tolist() == [0, 1, 1]
    book.price = 0.1
    assert book.choose(features).tolist() == [0, 0, 1]


def test_gumbel_form_chooses_the_priced_nearest_code(vqgan_folder: Path) -> None:
    model = vqgan.load_vqgan(vqgan_folder)
    codes, price = torch.randn(16, 32), torch.randn(16)
    vqgan.write_gumbel_form(model, codes, price)
    features = torch.randn(2, 32, 3, 3)
    distance = (features[:, None] - codes[:, :, None, None]).pow(2).sum(2)
    expected = (distance - price[:, None, None]).argmin(1)
    assert torch.equal(model.code_logits(features).argmax(1), expected)


def test_decoder_trains_and_exports(
    tmp_path: Path, vqgan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "BATCH", 2)
    monkeypatch.setattr(decoder, "CAPTIONS", 300)
    out = tmp_path / "decoder"
    folders = ["--work", str(tmp_path / "d"), "--out", str(out)]
    decoder.main([*folders, "--steps", "2"])
    assert {path.name for path in out.iterdir()} == {
        "MODEL_CARD.md", "bpe.model", "config.json", "model.safetensors",
    }  # fmt: skip
    again = torch.load(tmp_path / "d" / "checkpoint.pt", weights_only=True)
    assert again["step"] == 2


def test_super_resolution_trains_and_exports(
    tmp_path: Path, vqgan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(super_resolution, "BATCH", 2)
    out = tmp_path / "sr"
    folders = ["--work", str(tmp_path / "s"), "--out", str(out), "--vqgan", str(vqgan_folder)]
    super_resolution.main([*folders, "--steps", "2"])
    assert (out / "model.safetensors").exists()
