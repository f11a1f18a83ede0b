"""The process of a GPU: which errors end it, how errors are sent, and that it ends by itself."""

from __future__ import annotations

import pickle
import subprocess
import sys
from multiprocessing.connection import Pipe
from pathlib import Path

import pytest

from rudalle_lib.errors import OutOfMemoryError, StoppedError, TransientError
from tasks.runtime.worker_process import BROKEN_EXIT, Call, _portable, is_broken_device

ROOT = Path(__file__).resolve().parents[3]


class AcceleratorError(RuntimeError):
    """A class of the name that PyTorch uses."""


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (AcceleratorError("device-side assert triggered"), True),
        (AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (OutOfMemoryError("not enough memory (CUDA error: an illegal memory access)"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), False),
        (RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED at alloc.cpp"), True),
        (RuntimeError("CUDA error: operation failed due to a previous error during capture"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (StoppedError("asked to stop"), False),
    ],
)
def test_only_a_gpu_that_computes_no_more_ends_its_process(
    error: BaseException, broken: bool
) -> None:
    assert is_broken_device(error) is broken


def test_an_error_is_sent_with_its_traceback_or_in_words() -> None:
    class Local(Exception):
        """A class that cannot be sent."""

    for raised, kind, text in (
        (TransientError("no answer"), TransientError, "no answer"),
        (Local("strange"), RuntimeError, "Local: strange"),
    ):
        try:
            raise raised
        except Exception as error:
            sent = pickle.loads(pickle.dumps(_portable(error)))
        assert type(sent) is kind and str(sent) == text
        if kind is TransientError:
            assert "test_worker_process.py" in sent.__notes__[0]


@pytest.mark.parametrize("how", ["closed", "broken"])
def test_a_process_ends_when_its_socket_is_closed_or_its_gpu_has_failed(
    how: str, tmp_path: Path
) -> None:
    own, other = Pipe()
    code = "from tasks.runtime.worker_process import main; main(0)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=other.fileno())
    other.close()
    if how == "closed":
        own.close()
        assert process.wait(timeout=60) == 0
        return
    parameters = {"job": None, "folder": str(tmp_path), "how": "broken"}
    own.send(Call(0, "tests.support.worker_tasks", "die_once", parameters))
    logged = own.recv()
    assert "an illegal memory access" in logged.message
    assert process.wait(timeout=60) == BROKEN_EXIT
    own.close()
