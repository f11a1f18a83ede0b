"""GPUs compute with all digits of a precision, and in the same way each time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from rudalle_lib.runtime.reproducibility import make_reproducible
from rudalle_lib.weights.loading import load_vqgan

MATMUL = (
    "allow_tf32",
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)
CUDNN = ("allow_tf32", "benchmark", "deterministic")


def switches() -> dict[str, bool]:
    backends = torch.backends
    return {
        **{name: getattr(backends.cuda.matmul, name) for name in MATMUL},
        **{f"cudnn.{name}": getattr(backends.cudnn, name) for name in CUDNN},
    }


@pytest.fixture(autouse=True)
def defaults_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = switches()
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    yield before
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    for name in MATMUL:
        setattr(torch.backends.cuda.matmul, name, before[name])
    for name in CUDNN:
        setattr(torch.backends.cudnn, name, before[f"cudnn.{name}"])


def test_a_gpu_computes_exactly() -> None:
    make_reproducible([torch.device("cpu"), torch.device("cuda", 3)])
    expected = dict.fromkeys(switches(), False) | {"cudnn.deterministic": True}
    assert switches() == expected
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_workspace_that_is_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_reproducible([torch.device("cuda")])
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_cpu_changes_nothing() -> None:
    before = switches()
    make_reproducible([torch.device("cpu")])
    assert switches() == before and "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_loading_a_network_onto_a_gpu_is_enough() -> None:
    with pytest.raises(Exception, match=r"(?i)cuda"):  # this machine has no such GPU
        load_vqgan("demo-vqgan", device=torch.device("cuda", 99))
    assert switches()["cudnn.allow_tf32"] is False
