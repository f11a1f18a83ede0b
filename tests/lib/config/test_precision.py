"""`dtype: auto` is resolved while a configuration is read, and nothing else ever sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rudalle_lib import kernels
from rudalle_lib.config.overrides import parse_yaml
from rudalle_lib.config.precision import (
    PRECISION_FILE,
    RUN_MANIFEST,
    record_precisions,
    recorded_precisions,
)
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.runtime import RuntimeConfig
from rudalle_lib.dataset.ownership import check_ours
from rudalle_lib.pipeline.stages import fingerprints
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.runtime import devices
from rudalle_lib.schema.records import ShardSpec
from rudalle_lib.storage.storage import Storage
from tests.support.configs import config_error

RECIPES = Path(__file__).resolve().parents[3] / "configs"
ALL_AUTO = "{runtime: {dtype: auto}, decode: {dtype: auto}, score: {dtype: auto}}"


def set_cpu(monkeypatch: pytest.MonkeyPatch, native: bool, kernels_built: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_multiplies_bfloat16", lambda _: native)
    monkeypatch.setattr(kernels, "has_vectors", lambda: kernels_built)


@pytest.mark.parametrize(
    ("native", "kernels_built", "decoder", "images"),
    [
        (True, True, "bfloat16", "bfloat16"),
        (False, True, "bfloat16", "float32"),  # AVX2
        (False, False, "float32", "float32"),  # without a compiler
    ],
)
def test_auto_is_the_fastest_exact_precision(
    native: bool, kernels_built: bool, decoder: str, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_cpu(monkeypatch, native, kernels_built)
    config = RunConfig.parse(ALL_AUTO)
    assert config.runtime.dtype == decoder
    assert (config.decode.dtype, config.score.dtype) == (images, images)
    assert config.upscale.dtype == "float32"


def test_auto_and_its_name_are_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    set_cpu(monkeypatch, True, True)
    auto, named = RunConfig.parse(ALL_AUTO), RunConfig.parse(ALL_AUTO.replace("auto", "bfloat16"))
    assert auto == named and auto.digest() == named.digest()
    assert "auto" not in {auto.public_dict()[name]["dtype"] for name in ("runtime", "decode")}
    shard = ShardSpec(0, "plan/00000.parquet", 1, "0" * 32)
    assert fingerprints(auto, {}, shard) == fingerprints(named, {}, shard)


def test_a_section_made_in_python_may_say_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    set_cpu(monkeypatch, False, True)
    runtime = RuntimeConfig(dtype="auto", threads=3)
    config = RunConfig(runtime=runtime)
    assert config.runtime == runtime.model_copy(update={"dtype": "bfloat16"})


def test_every_gpu_must_multiply_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: device.index == 0)
    for setting, expected in (("cuda:0", "bfloat16"), ("cuda:1", "float32"), ("auto", "float32")):
        config = RunConfig.parse(f"runtime: {{dtype: auto, devices: '{setting}'}}")
        assert config.runtime.dtype == expected


def test_devices_of_another_machine_need_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    set_cpu(monkeypatch, True, True)
    message = config_error("runtime: {dtype: auto, devices: cuda}")
    assert "runtime.dtype depends on this machine, but device 'cuda' was not found" in message
    message = config_error("runtime: {runner: ray, ray_address: 'head:6379', dtype: auto}")
    assert "name the precision, such as bfloat16" in message


@pytest.mark.parametrize("path", sorted(RECIPES.glob("[!f]*.yaml")), ids=lambda path: path.stem)
def test_recipes_draw_in_bfloat16_where_it_is_native(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they did when they named it; the demo is exact everywhere, and Kandinsky is small."""
    set_cpu(monkeypatch, True, True)
    config = RunConfig.load(str(path))
    named = parse_yaml(path.read_text("utf-8"), str(path))["runtime"]["dtype"]
    assert config.runtime.dtype == ("bfloat16" if named == "auto" else named)
    expected = "float32" if path.stem == "demo" else "bfloat16"
    assert config.decode.dtype == expected


# --- an output that exists -----------------------------------------------------------------------


def parse(output: Path | str, dtype: str = "auto") -> RunConfig:
    return RunConfig.parse(f"{{output: '{output}', runtime: {{dtype: {dtype}}}}}")


def test_another_machine_keeps_the_precision_of_an_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_cpu(monkeypatch, True, True)
    begun = parse(tmp_path)
    assert begun.runtime.dtype == "bfloat16"
    record_precisions(Storage(str(tmp_path)), begun.precisions())
    set_cpu(monkeypatch, False, False)
    assert parse(tmp_path) == begun
    assert parse(tmp_path / "new").runtime.dtype == "float32"
    named = parse(tmp_path, "float32")
    assert named.runtime.dtype == "float32"
    record_precisions(Storage(str(tmp_path)), named.precisions())  # a run with it has begun
    set_cpu(monkeypatch, True, True)
    assert parse(tmp_path).runtime.dtype == "float32"


def test_outputs_of_before_have_it_in_run_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_cpu(monkeypatch, True, True)
    config = {"runtime": {"dtype": "float32"}, "decode": {"dtype": "float32"}}
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    found = RunConfig.parse(f"{{output: '{tmp_path}', {ALL_AUTO[1:]}")
    assert (found.runtime.dtype, found.decode.dtype) == ("float32", "float32")
    assert found.score.dtype == "bfloat16"  # not recorded


def test_the_devices_of_a_cluster_need_no_name_if_the_output_has_one(tmp_path: Path) -> None:
    record_precisions(Storage(str(tmp_path)), {"runtime": "bfloat16"})
    text = f"output: '{tmp_path}', runtime: {{runner: ray, ray_address: 'a:1', dtype: auto}}"
    assert RunConfig.parse(f"{{{text}}}").runtime.dtype == "bfloat16"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"config": []}', '{"runtime": 3}', "null"])
@pytest.mark.parametrize("name", [PRECISION_FILE, RUN_MANIFEST])
def test_files_of_something_else_are_ignored_and_stay(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_cpu(monkeypatch, True, True)
    (tmp_path / name).write_text(content)
    assert parse(tmp_path).runtime.dtype == "bfloat16"
    record_precisions(Storage(str(tmp_path)), {"runtime": "float32"})
    assert (tmp_path / name).read_text() == content


def test_an_output_that_cannot_be_read_is_the_business_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_cpu(monkeypatch, True, True)
    assert parse("/dev/null/x").runtime.dtype == "bfloat16"


def test_a_run_records_its_precision_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text("prompt\nкруг\n", encoding="utf-8")
    set_cpu(monkeypatch, True, True)
    text = f"output: '{tmp_path / 'out'}', prompts: {{uri: '{table}'}}, runtime: {{dtype: auto}}"
    config = RunConfig.parse(f"{{{text}}}")
    storage = Storage(config.output)
    plan_run(config, storage, write=False)
    assert recorded_precisions(config.output) == {}
    plan_run(config, storage)
    assert recorded_precisions(config.output) == config.precisions()
    check_ours(storage)
