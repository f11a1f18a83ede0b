"""Loading the compiled kernels, and calling them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rudalle_lib import kernels
from rudalle_lib.kernels import abi
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder
from rudalle_lib.models.decoding.torch_cache import TorchLayerCache
from tests.support.compiled import (
    build_emulated,
    emulated_amx,
    forget,
    needs_compiler,
    needs_kernels,
)

STALE = """
extern "C" long constant_ABI_VERSION() { return 0; }
extern "C" int has_amx() { return 1; }
"""
"""A library of another version; its `has_amx` must not be called."""


@pytest.fixture
def reloaded() -> Iterator[None]:
    """The library is loaded again, during the test and after it."""
    forget()
    yield
    forget()


@pytest.fixture
def stale(
    reloaded: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The library was built from sources with another limit."""
    monkeypatch.setitem(abi.CONSTANTS, "MAX_CONTEXT", 1024)
    caplog.set_level(logging.WARNING)


@pytest.mark.parametrize(("value", "available"), [("0", False), ("1", True)])
@needs_kernels
def test_the_environment_can_disable_the_kernels(value: str, available: bool) -> None:
    script = "from rudalle_lib import kernels; print(kernels.is_available())"
    process = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, kernels.ENV_SWITCH: value},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert process.stdout.strip() == str(available)


@needs_kernels
def test_a_stale_library_is_not_used(stale: None, caplog: pytest.LogCaptureFixture) -> None:
    assert not kernels.is_available() and not kernels.has_amx()
    assert not kernels.supports(torch.zeros(32))
    (record,) = caplog.records
    message = record.getMessage()
    assert "stale" in message and "constant_MAX_CONTEXT: expected 1024, found 512" in message
    assert message.endswith(f"Rebuild them with: {kernels.REBUILD}")


@needs_kernels
@torch.inference_mode()
def test_with_a_stale_library_the_decoder_uses_torch(stale: None) -> None:
    model = Dalle(DalleConfig(2, 64, 2, 60, 32, 9, 3, 3)).eval()
    decoder = CachedDecoder(model, torch.ones(1, 32, dtype=torch.int64), torch.zeros(2).long())
    assert decoder.prefill().isfinite().all()
    assert all(isinstance(layer, TorchLayerCache) for layer in decoder._layers)
    assert decoder.decode_one_token(torch.tensor([1, 2])).isfinite().all()


@needs_compiler
def test_a_library_of_another_version_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, built = tmp_path / "stale.cpp", tmp_path / "stale.so"
    source.write_text(STALE)
    subprocess.run(["c++", "-shared", "-fPIC", "-o", built, source], check=True)
    assert kernels.load_library(built) is None
    message = caplog.records[0].getMessage()
    assert str(built) in message
    assert f"constant_ABI_VERSION: expected {abi.ABI_VERSION}, found 0" in message
    assert "constant_BLOCK: expected 32, found nothing" in message


@needs_compiler
def test_a_library_that_emulates_amx_is_never_loaded(caplog: pytest.LogCaptureFixture) -> None:
    library = build_emulated()
    assert kernels.load_library(library) is None
    assert "constant_EMULATED: expected 0, found 1" in caplog.records[0].getMessage()
    assert library.parent != Path(kernels.__file__).parent


@needs_compiler
def test_emulated_amx_ends_with_its_test() -> None:
    before = kernels.has_amx()
    with emulated_amx():
        assert kernels.has_amx() and kernels.is_available()
    assert kernels.has_amx() == before


def test_kernels_support_only_compiled_dtypes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_available", lambda: True)
    assert all(kernels.supports(torch.zeros(1, dtype=dtype)) for dtype in kernels.DTYPES)
    assert not kernels.supports(torch.zeros(1, dtype=torch.float16))
    assert not kernels.supports(torch.zeros(1, device="meta"))


@pytest.mark.parametrize(("dtype", "together"), [(torch.bfloat16, 2), (torch.int8, 4)])
def test_tiles_hold_the_rows_that_are_multiplied_together(
    dtype: torch.dtype, together: int
) -> None:
    rows = 2 * abi.TILE_ROWS * together
    matrix = torch.arange(32 * rows).view(32, rows) % 127
    tiles = kernels.to_tiles(matrix.to(dtype))
    assert tiles.shape == (2, 2, abi.TILE_ROWS, abi.TILE_COLUMNS, together)
    column, row = 21, abi.TILE_ROWS * together + 5
    tile_row, lane = divmod(5, together)
    assert tiles[1, 1, tile_row, 5, lane] == matrix[column, row]


def layer_norm(x: torch.Tensor, output: torch.Tensor) -> kernels.Operation:
    """The layer norm of rows of x, without gain, shift and addition."""
    width = x.shape[1]
    gain, shift = torch.ones(width), torch.zeros(width)
    args = abi.LayerNormArgs(
        len(x), width, 1e-5, x.data_ptr(), gain.data_ptr(), shift.data_ptr(), 0, output.data_ptr()
    )
    return kernels.operation("layer_norm", x.dtype, args, x.numel(), x, output, gain, shift)


@needs_kernels
def test_operations_can_be_repeated_on_new_values() -> None:
    x, output = torch.randn(3, 64), torch.empty(3, 64)
    operation = layer_norm(x, output)
    for _ in range(2):
        operation.run()
        torch.testing.assert_close(output, torch.nn.functional.layer_norm(x, (64,)))
        x.copy_(torch.randn(3, 64))


@needs_kernels
def test_large_operations_use_several_threads() -> None:
    width = 64
    rows = kernels.GRAIN_SIZE // width
    small, large = torch.randn(rows, width), torch.randn(rows + 1, width)
    assert layer_norm(small, torch.empty_like(small)).single_threaded
    assert not layer_norm(large, torch.empty_like(large)).single_threaded


@needs_kernels
def test_a_program_runs_its_operations_in_order() -> None:
    x, middle, output = torch.randn(3, 64), torch.empty(3, 64), torch.empty(3, 64)
    program = kernels.Program([layer_norm(x, middle), layer_norm(middle, output)])
    program.run()
    expected = torch.nn.functional.layer_norm(x, (64,))
    torch.testing.assert_close(middle, expected)
    torch.testing.assert_close(output, torch.nn.functional.layer_norm(middle, (64,)))
    x.mul_(2).add_(torch.randn(3, 64))
    program.run()  # with the current values
    torch.testing.assert_close(middle, torch.nn.functional.layer_norm(x, (64,)))
