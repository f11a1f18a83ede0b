"""A decoder learns pictures of one's own, resumes, and what is written draws in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from rudalle_lib.config import WeightsConfig
from rudalle_lib.errors import PromptError
from rudalle_lib.training import fine_tune
from rudalle_lib.weights import load_decoder, load_vqgan

COLOURS = ["navy", "teal", "maroon", "olive"]
TEXT = "радуга над морем"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four striped pictures of odd sizes, and three rows that cannot be used."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for number, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (200 + 10 * number, 160), "white")
        ImageDraw.Draw(picture).rectangle((40, 0, 70 + 5 * number, 160), fill=colour)
        picture.save(folder / f"{number}.png")
        rows.append(f"{TEXT} {number},{folder / f'{number}.png'}")
    (folder / "broken.png").write_bytes(b"no picture")
    rows += [f"broken,{folder / 'broken.png'}", "no picture,", f",{folder / '0.png'}"]
    path = folder / "pictures.csv"
    path.write_text("\n".join(["prompt,picture", *rows, ""]), encoding="utf-8")
    return path


def loss_of(weights: WeightsConfig, work: Path) -> float:
    """The mean loss of the pictures that were learnt."""
    model = load_decoder("demo-dalle", weights).model
    pairs = fine_tune.load_file(work / "pairs.safetensors")
    with torch.no_grad():
        return float(model.loss(pairs["text"], pairs["image"]).image)


def learn(table: Path, work: Path, out: Path, *more: str) -> None:
    folders = ["--work", str(work), "--out", str(out), "--device", "cpu"]
    fine_tune.main(["--table", str(table), *folders, "--rate", "1e-3", *more])


def test_it_learns_and_draws_in_the_place_of_the_old_one(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "weights"
    learn(table, work, out, "--steps", "12")
    said = capsys.readouterr().out
    assert "4 pictures to learn from" in said
    assert f"left out: row 5 of {table}: " in said and "broken.png" in said
    assert f"left out: row 6 of {table}: " in said
    assert f"left out: row 7 of {table}: " in said
    before = loss_of(WeightsConfig(), work)
    assert loss_of(WeightsConfig(folder=str(out)), work) < before / 4


def test_what_is_frozen_stays_and_a_stopped_training_goes_on(table: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "weights"
    frozen = ("--frozen", "attention", "mlp", "--batch", "2")
    learn(table, work, out, "--steps", "1", *frozen)
    learn(table, work, out, "--steps", "2", *frozen)
    assert torch.load(work / "checkpoint.pt", weights_only=True)["step"] == 2
    weights = WeightsConfig(folder=str(out))
    old = load_decoder("demo-dalle", packed=False).model.state_dict()
    new = load_decoder("demo-dalle", weights, packed=False).model.state_dict()
    moved = {name for name, value in new.items() if not torch.equal(value, old[name])}
    assert moved and not any(".attention." in name or ".mlp." in name for name in moved)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("prompt\nкруг\n", "has no column picture"),
        ("prompt,picture\nкруг,/no/such.png\n", "no row to learn from; left out: row 1 of"),
    ],
)
def test_a_table_without_pictures_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    table = tmp_path / "none.csv"
    table.write_text(content, encoding="utf-8")
    loaded, vqgan = load_decoder("demo-dalle"), load_vqgan("demo-vqgan").model
    with pytest.raises(PromptError, match=sentence):
        fine_tune.read_pairs(str(table), loaded.tokenizer, vqgan, loaded.model.config)
