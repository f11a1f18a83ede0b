"""Hostile image prompts become rejects; hostile weights end a run before anything is drawn."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from rudalle_lib.checks.audit import audit_output
from rudalle_lib.config.run import RunConfig
from rudalle_lib.storage.storage import Storage
from tests.lib.images.test_containers import BOMBS, many_scans
from tests.support.finished_run import finish, tiny_config
from tests.support.tiny_stack import GRID

pytestmark = pytest.mark.chaos

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def png(**options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", **options)
    return buffer.getvalue()


def image_prompts() -> dict[str, bytes]:
    """Good and hostile files by name; the names of good ones begin with "good"."""
    files = {f"bomb{number}.png": make() for number, (make, _) in enumerate(
        BOMBS[name] for name in ("2,000 scans", "a huge PNG", "two million chunks",
                                 "a WebP with a huge canvas", "arithmetic coding"))}  # fmt: skip
    gif = io.BytesIO()
    Image.new("P", (8, 8)).save(gif, "GIF")
    exif = Image.Exif()
    exif[0x0112] = 6
    return files | {
        "good.png": png(),
        "good_turned.png": png(exif=exif.tobytes()),
        "good_small_scans.jpg": many_scans(200, 64),
        "gif.png": gif.getvalue(),
        "pointer.png": POINTER,
        "page.png": b"<!DOCTYPE html><title>Not found</title>",
        "empty.png": b"",
        "cut.png": png()[:-300],
        "flipped.png": png().replace(b"IDAT", b"IDAU"),
        "noise.png": np.random.default_rng(1).bytes(5_000),
    }


def run_with_image_prompts(folder: Path, output: str) -> tuple[RunConfig, dict[str, str]]:
    """The configuration of a finished run, and the details of its rejects by prompt id."""
    rows: list[dict[str, str]] = []
    for name, content in image_prompts().items():
        (folder / name).write_bytes(content)
        rows.append({
            "prompt_id": name.replace(".", "-"), "prompt": f"круг {len(rows)}", "lang": "ru",
            "image_prompt": str(folder / name), "image_prompt_borders": f"up={GRID // 2}",
        })  # fmt: skip
    base = tiny_config(folder, str(folder / output))
    table = folder / "prompts.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows))
    config = RunConfig.model_validate({
        **base.model_dump(),
        "prompts": {"uri": str(table)},
        "generate": {"images": 1, "batch_size": 8},
        "upscale": {"model": None},
    })  # fmt: skip
    finish(config)
    storage = Storage(config.output)
    rejects = [
        row for path in storage.list("rejects") for row in storage.read_table(path).to_pylist()
    ]
    assert {row["reason"] for row in rejects} == {"bad_image_prompt"}
    return config, {row["prompt_id"]: row["detail"] for row in rejects}


def test_hostile_image_prompts_are_rejects_that_are_the_same_in_every_run(tmp_path: Path) -> None:
    config, details = run_with_image_prompts(tmp_path, "out")
    expected = {name.replace(".", "-") for name in image_prompts() if not name.startswith("good")}
    assert details.keys() == expected
    assert all(" at 0x" not in detail and "\n" not in detail for detail in details.values())
    assert all(len(detail) < 400 for detail in details.values())
    assert "Git LFS pointer" in details["pointer-png"] and "HTML page" in details["page-png"]
    assert audit_output(Storage(config.output)).faults == []
    assert run_with_image_prompts(tmp_path, "again")[1] == details


def errors_in(stderr: str) -> list[str]:
    """Return the lines of a command on stderr, less the one that a run prints at once."""
    return [line for line in stderr.splitlines() if ": checking models" not in line]


@pytest.mark.parametrize("content", [POINTER, b"<html>", b'{"error": "no"}', b""])
@pytest.mark.parametrize("stage", ["generate", "upscale", "score"])
def test_weights_that_are_something_else_end_a_run_before_anything_is_written(
    stage: str, content: bytes, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, str(tmp_path / "out"))
    path = tmp_path / "weights" / getattr(config, stage).model / "model.safetensors"
    path.write_bytes(content)
    (tmp_path / "run.yaml").write_text(config.model_dump_json())
    for command in ("run", "plan"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "run.yaml")])
        assert done.exit_code == 2, done.output
        assert str(path) in done.stderr and "Traceback" not in done.stderr
        assert len(errors_in(done.stderr)) == 1 and "weights_only" not in done.stderr
        assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize("kind", ["repeated", "code", "pointer"])
def test_a_hostile_checkpoint_ends_a_run_before_anything_is_written(
    kind: str, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, str(tmp_path / "out"))
    path = tmp_path / "weights" / "Real-ESRGAN" / "RealESRGAN_x2.pth"
    path.parent.mkdir()
    if kind == "repeated":
        torch.save({"params": {"conv_first.weight": torch.zeros(1).expand(800_000_000)}}, path)
    else:
        code = f"cposix\nsystem\n(Vtouch {tmp_path}/executed\ntR.".encode()
        path.write_bytes(POINTER if kind == "pointer" else code)
    values = {**config.model_dump(mode="json"), "upscale": {"model": "realesrgan-x2"}}
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    done = CliRunner().invoke(app, ["run", str(tmp_path / "run.yaml")])
    assert done.exit_code == 2, done.output
    assert len(errors_in(done.stderr)) == 1 and "RealESRGAN_x2.pth" in done.stderr
    assert not (tmp_path / "executed").exists()
    assert not list((tmp_path / "out").rglob("*.parquet"))
    assert not list(tmp_path.rglob("*.partial")) and not list(path.parent.glob(".*/*"))
