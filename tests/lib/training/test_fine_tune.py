"""Fine-tuning: a decoder learns given images, resumes, and its new weights replace the old ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import PromptError
from rudalle_lib.prompts.rows import EXTRA
from rudalle_lib.training import fine_tune
from rudalle_lib.weights.loading import load_decoder, load_vqgan

COLOURS = ["navy", "teal", "maroon", "olive"]
TEXT = "радуга над морем"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of four striped images of odd sizes, and three unusable rows."""
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for number, colour in enumerate(COLOURS):
        image = Image.new("RGB", (200 + 10 * number, 160), "white")
        ImageDraw.Draw(image).rectangle((40, 0, 70 + 5 * number, 160), fill=colour)
        image.save(folder / f"{number}.png")
        rows.append(f"{TEXT} {number},{folder / f'{number}.png'}")
    (folder / "broken.png").write_bytes(b"no image")
    rows += [f"broken,{folder / 'broken.png'}", "no image,", f",{folder / '0.png'}"]
    path = folder / "images.csv"
    path.write_text("\n".join(["prompt,image", *rows, ""]), encoding="utf-8")
    return path


def loss_of(weights: WeightsConfig, work: Path) -> float:
    """The mean loss on the images that were learnt."""
    model = load_decoder("demo-dalle", weights).model
    pairs = load_file(work / "pairs.safetensors")
    with torch.no_grad():
        return float(model.loss(pairs["text"], pairs["image"]).image)


def learn(table: Path, work: Path, out: Path, *options: str) -> None:
    folders = ["--work", str(work), "--out", str(out), "--device", "cpu"]
    fine_tune.main(["--table", str(table), *folders, "--rate", "1e-3", *options])


def test_fine_tuned_weights_replace_the_old_ones(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "weights"
    learn(table, work, out, "--steps", "12")
    output = capsys.readouterr().out
    assert "4 images to learn from" in output
    assert f"left out: row 5 of {table}: " in output and "broken.png" in output
    assert f"left out: row 6 of {table}: " in output
    assert f"left out: row 7 of {table}: " in output
    before = loss_of(WeightsConfig(), work)
    assert loss_of(WeightsConfig(folder=str(out)), work) < before / 4


def test_frozen_parts_do_not_change_and_a_stopped_training_resumes(
    table: Path, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "weights"
    frozen = ("--frozen", "attention", "mlp", "--batch", "2")
    learn(table, work, out, "--steps", "1", *frozen)
    learn(table, work, out, "--steps", "2", *frozen)
    assert torch.load(work / "checkpoint.pt", weights_only=True)["step"] == 2
    weights = WeightsConfig(folder=str(out))
    old = load_decoder("demo-dalle", packed=False).model.state_dict()
    new = load_decoder("demo-dalle", weights, packed=False).model.state_dict()
    changed = {name for name, value in new.items() if not torch.equal(value, old[name])}
    assert changed and not any(".attention." in name or ".mlp." in name for name in changed)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("prompt\nкруг\n", "has no column image or picture"),
        ("prompt,image\nкруг,/no/such.png\n", "no row to learn from. First problem: row 1 of"),
    ],
)
def test_table_without_images_is_rejected(tmp_path: Path, content: str, sentence: str) -> None:
    table = tmp_path / "none.csv"
    table.write_text(content, encoding="utf-8")
    loaded, vqgan = load_decoder("demo-dalle"), load_vqgan("demo-vqgan").model
    with pytest.raises(PromptError, match=sentence):
        fine_tune.read_pairs(str(table), loaded.tokenizer, vqgan, loaded.model.config)


@pytest.mark.parametrize("column", ["image", "picture"])
def test_both_names_of_the_column_are_accepted(table: Path, tmp_path: Path, column: str) -> None:
    named = tmp_path / "named.csv"
    image = table.parent / "0.png"
    named.write_text(f"prompt,{column}\n{TEXT},{image}\n", encoding="utf-8")
    loaded, vqgan = load_decoder("demo-dalle"), load_vqgan("demo-vqgan").model
    pairs, problems = fine_tune.read_pairs(str(named), loaded.tokenizer, vqgan, loaded.model.config)
    assert pairs["image"].shape == (1, 256)
    assert problems == []


def test_image_column_is_preferred_to_picture() -> None:
    names = [EXTRA + name for name in ("picture", "image")]
    assert fine_tune.image_column("t.csv", names) == EXTRA + "image"
