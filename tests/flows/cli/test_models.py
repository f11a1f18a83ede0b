"""The commands of `rudalle-flows models`, and their exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from flows.cli import app
from tests.support.tiny_stack import write_tiny_stack


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # paths are not broken into lines


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


@pytest.mark.parametrize("arguments", [(), ("list",)])
def test_list_names_every_kind_of_model(arguments: tuple[str, ...]) -> None:
    done = call(*arguments)
    assert done.exit_code == 0
    for name in ("demo-dalle", "kandinsky-12b", "vqgan-f8-dwt", "ruclip-small", "realesrgan-x8"):
        assert name in done.stdout


def test_show_prints_the_source_of_a_model() -> None:
    done = call("show", "malevich-v3")
    assert done.exit_code == 0
    for fact in ("pytorch_model_v3.bin from sberbank-ai/rudalle-Malevich", "hidden_size 2048",
                 "bpe.model from shonenkov/rudalle-utils", "licence"):  # fmt: skip
        assert fact in done.stdout


def test_an_unknown_name_is_bad_input() -> None:
    done = call("show", "malevic-v3")
    assert done.exit_code == 2
    assert "did you mean malevich-v3" in done.stderr


def test_pull_prints_where_the_files_are_or_where_to_put_them(tmp_path: Path) -> None:
    missing = call("pull", "realesrgan-x2", "--offline", "--folder", str(tmp_path))
    assert missing.exit_code == 2
    assert "nothing was downloaded" in missing.stderr
    path = tmp_path / "Real-ESRGAN" / "RealESRGAN_x2.pth"
    path.parent.mkdir()
    path.write_bytes(b"0" * 2_000_000)
    found = call("pull", "realesrgan-x2", "--offline", "--folder", str(tmp_path))
    assert found.exit_code == 0
    assert f"{path} (2.0 MB)" in found.stdout


def test_convert_writes_a_copy_and_rejects_other_files(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "model.pth")
    done = call("convert", str(tmp_path / "model.pth"))
    assert done.exit_code == 0
    copy = Path(done.stdout.rpartition(" (")[0])
    assert copy.name == "model.pth.safetensors" and copy.is_file()
    (tmp_path / "text.bin").write_text("no weights")
    rejected = call("convert", str(tmp_path / "text.bin"))
    assert rejected.exit_code == 2
    assert "not a readable PyTorch checkpoint" in rejected.stderr
    assert call("convert", str(tmp_path / "absent.bin")).exit_code == 2


def test_verify_runs_the_model(tmp_path: Path) -> None:
    folder = str(write_tiny_stack(tmp_path))
    done = call("verify", "demo-vqgan", "--folder", folder)
    assert done.exit_code == 0
    assert "demo-vqgan works" in done.stdout and "SHA-256" in done.stdout
    (tmp_path / "demo-vqgan" / "model.safetensors").write_bytes(b"")
    broken = call("verify", "demo-vqgan", "--folder", folder)
    assert broken.exit_code == 2
    assert "not a readable safetensors file" in broken.stderr
