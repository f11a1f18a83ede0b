"""Shards of every kind on pretended CUDA devices: no tensor is on a wrong device, no step waits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.pretended_shards import KINDS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a shard of each kind asked of its devices."""
    command = [sys.executable, "-m", "tests.support.pretended_shards"]
    done = subprocess.run(
        [*command, str(tmp_path_factory.mktemp("shards"))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_passes_all_stages_and_every_tensor_is_on_its_device(
    kind: str, asked: dict[str, Any]
) -> None:
    shard = asked[kind]
    assert shard["kept"] > 0
    assert shard["all"]["mismatches"] == 0
    assert shard["devices"] == (["cuda:0", "cuda:1"] if kind == "split" else ["cuda:0"])
    assert shard["all"]["kernels"] > 1_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_never_waits_for_the_device(kind: str, asked: dict[str, Any]) -> None:
    step = asked[kind]["step"]
    assert step["kernels"] > 0
    assert step["waits"] == 0
    assert step["copies"] == (2 if kind == "split" else 0)  # to the second device and back


def test_the_rules_of_cuda_are_enforced() -> None:
    """What these tests rely on: a wrong device fails, and waits and copies are counted."""
    code = """
from tests.support.pretended_cuda import install
counts = install(2)
import torch
one = torch.ones(2, 3, 4, 4, device="cuda:0")
for wrong in (torch.ones(4), torch.ones(4, device="cuda:1")):
    try:
        one + wrong
        raise SystemExit("a tensor on another device was accepted")
    except RuntimeError as error:
        assert "on the same device" in str(error), error
assert (one + torch.tensor(2.0)).sum().item() == 288 and one.device == torch.device("cuda:0")
assert counts.totals()["waits"] == 1, counts
assert (one[0, torch.tensor([1, 2])].cpu() == 1).all() and one.to("cuda:1").device.index == 1
assert sum(counts.copies.values()) == 3, counts  # the index, to the CPU, to the other device
before = counts.totals()["layouts"]
torch.nn.functional.group_norm(one.contiguous(memory_format=torch.channels_last), 3)
assert counts.totals()["layouts"] == before + 2, counts  # channels-last, and back for the norm
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
