"""Which build of PyTorch is installed where, with pip's answers given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.install_torch import CONSTRAINTS, CPU_INDEX, install, main, pinned_version

VERSION = "2.13.0"


class Pip:
    """What pip is asked for, and whether it finds it."""

    def __init__(self, *found: bool) -> None:
        self.answers = list(found)
        self.asked: list[str] = []

    def __call__(self, arguments: Sequence[str]) -> bool:
        index = " from PyTorch" if CPU_INDEX in arguments else ""
        self.asked.append(f"{arguments[-1]}{index}")
        return self.answers.pop(0)


def take(wanted: str, pip: Pip, installed: str | None = None, driver: bool = False) -> str:
    return install(wanted, VERSION, installed, driver, pip, pip)


def test_without_a_driver_the_build_for_cpus_is_taken_from_where_pip_looks() -> None:
    pip = Pip(True)
    said = take("auto", pip)
    assert pip.asked == ["torch==2.13.0+cpu"]
    assert said == (
        "PyTorch 2.13.0 for CPUs: no NVIDIA driver was found; make TORCH=cuda takes the other one."
    )


def test_otherwise_from_the_index_of_pytorch_and_else_whatever_there_is() -> None:
    pip = Pip(False, True)
    assert "for CPUs" in take("auto", pip)
    assert pip.asked == ["torch==2.13.0+cpu", "torch==2.13.0+cpu from PyTorch"]
    pip = Pip(False, False, True)
    said_before: list[tuple[str, int]] = []

    def say(text: str) -> None:
        said_before.append((text, len(pip.asked)))

    assert "as pip found it" in install("auto", VERSION, None, False, pip, pip, say)
    assert pip.asked[-1] == "torch==2.13.0"
    ((text, asked),) = said_before
    assert "perhaps the build for CUDA, 5.5 GB" in text and asked == 2  # before it is fetched


def test_with_a_driver_the_build_for_cuda_is_taken_even_if_one_for_cpus_is_nearer() -> None:
    pip = Pip(True)
    said = take("auto", pip, driver=True)
    assert pip.asked == ["torch===2.13.0"]
    assert "for CUDA: an NVIDIA driver was found; make TORCH=cpu" in said


@pytest.mark.parametrize(
    ("wanted", "driver", "asked"),
    [("cpu", True, "torch==2.13.0+cpu"), ("cuda", False, "torch===2.13.0")],
)
def test_what_is_asked_for_is_taken(wanted: str, driver: bool, asked: str) -> None:
    pip = Pip(True)
    said = take(wanted, pip, driver=driver)
    assert pip.asked == [asked] and ", as asked;" in said


@pytest.mark.parametrize(
    ("wanted", "installed", "kept"),
    [
        ("auto", "2.13.0", True),
        ("auto", "2.13.0+cpu", True),
        ("auto", "2.12.0", False),
        ("cpu", "2.13.0+cpu", True),
        ("cpu", "2.13.0", False),
        ("cuda", "2.13.0", True),
        ("cuda", "2.13.0+cpu", False),
    ],
)
def test_what_is_right_is_not_installed_again(wanted: str, installed: str, kept: bool) -> None:
    pip = Pip(True)
    assert (take(wanted, pip, installed) == "") == kept
    assert pip.asked == [] if kept else pip.asked


def test_if_nothing_is_found_it_ends_with_one_sentence() -> None:
    with pytest.raises(SystemExit, match="PyTorch 2.13.0 could not be installed"):
        take("auto", Pip(False, False, False))
    with pytest.raises(SystemExit, match="The CUDA build of PyTorch 2.13.0 could not"):
        take("cuda", Pip(False))


def test_an_unknown_build_names_the_known_ones() -> None:
    with pytest.raises(SystemExit, match="TORCH is 'rocm'; expected one of auto, cpu, cuda"):
        main(["rocm"])


def test_the_version_is_the_pinned_one() -> None:
    assert pinned_version(CONSTRAINTS.read_text("utf-8")) == VERSION
    with pytest.raises(SystemExit, match="does not pin torch"):
        pinned_version("torchvision==1.0\n")


def test_in_this_environment_nothing_is_to_do() -> None:
    """As `make` calls it: a script that imports nothing of ours."""
    script = Path(CONSTRAINTS.parent, "tools", "install_torch.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
