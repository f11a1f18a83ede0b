"""The kernels compile for GPUs that this machine does not have, without spilling registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.compiled import BUILD

ROOT = Path(__file__).resolve().parents[4]

ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]
"""A100; RTX 30 and A10; RTX 40 and L4; H100 and H200; B200; RTX 50."""

GENERATIONS = ["80", "90", "120"]
"""One each of Ampere, Hopper and Blackwell; code may differ within one, so a slow test has all."""

SHARED = 99 * 1024
"""Bytes of shared memory that a program can have on RTX cards; A100, H100 and B200 have more."""

MALEVICH = [
    "attention malevich", "norms bf16", "draw bf16", "product int8",
    "attention malevich int8_dynamic", "norms int8_dynamic", "product int8_dynamic",
    "product int8_dynamic contexts",
]  # fmt: skip
"""The kernels of the published decoders in the precisions that GPUs are fastest in."""


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """What `tests/support/compile_kernels.py` found.

    Triton keeps what it has compiled by the content of its source, and compiles only what changed.
    """
    command = [sys.executable, "-m", "tests.support.compile_kernels", *arguments]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(BUILD / "triton")}
    environment.pop("TRITON_INTERPRET", None)
    out = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert out.returncode == 0, out.stderr[-2000:]
    return [json.loads(line) for line in out.stdout.splitlines()]


def check(found: dict[str, Any]) -> None:
    """No spills, loads and stores of 16 bytes, and at least one program per multiprocessor."""
    assert found["spilled"] == found["local"] == 0, found
    assert found["registers"] <= 160, found
    assert found["shared"] <= SHARED, found
    assert found["wide"] >= 2, found
    if found["case"].startswith("attention malevich") and "float" not in found["case"]:
        assert found["registers"] <= 96, found  # so two or three programs share a multiprocessor
        assert found["wide"] / found["global"] > 0.5, found  # the others read tables


def test_no_kernel_spills_and_all_move_16_bytes_at_once() -> None:
    found = compiled(*GENERATIONS, *MALEVICH)
    assert len(found) == len(GENERATIONS) * len(MALEVICH)
    for one in found:
        check(one)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_precision_and_size(architecture: str) -> None:
    found = compiled(architecture)
    assert len(found) >= 24
    for one in found:
        check(one)
