"""Install the build of PyTorch that this machine can use, before pip chooses one.

On Linux the usual package index has the build for CUDA, with its libraries 5.5 GB. Where there is
no NVIDIA driver, this takes the build for CPUs, a twentieth of that: from wherever pip looks, such
as a folder of wheels, or from PyTorch's own index. If neither has it, pip takes what it finds.

Usage: python tools/install_torch.py [auto|cpu|cuda]
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"

CPU_INDEX = "https://download.pytorch.org/whl/cpu"

DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1")
"""Files of an NVIDIA driver: on Linux, in containers, on Windows' Linux."""

CHOICES = ("auto", "cpu", "cuda")

HOW = "make TORCH={} takes the other one"

Run = Callable[[Sequence[str]], bool]


def pip(arguments: Sequence[str]) -> bool:
    """Run pip quietly; whether it succeeded. What a failed attempt says is shown."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command).returncode == 0


def pip_silently(arguments: Sequence[str]) -> bool:
    """As `pip`, for attempts that may fail."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def say_now(text: str) -> None:
    """Print a line at once, even into a pipe."""
    print(text, flush=True)


def pinned_version(constraints: str) -> str:
    """The version of PyTorch in the text of a constraints file."""
    found = re.search(r"^torch==(\S+)", constraints, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{CONSTRAINTS} does not pin torch.")
    return found[1]


def installed_version() -> str | None:
    """The version of PyTorch that is installed here."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return any(os.path.exists(path) for path in DRIVERS)


def install(
    wanted: str,
    version: str,
    installed: str | None,
    driver: bool,
    run: Run = pip,
    attempt: Run = pip_silently,
    say: Callable[[str], None] = say_now,
) -> str:
    """Install a build of PyTorch unless the right one is there.

    Args:
        wanted: one of `CHOICES`; auto keeps what is installed, if its version is right.
        version: the version.
        installed: the version that is installed, if any; that of a CPU build ends in `+cpu`.
        driver: whether there is an NVIDIA driver.
        run: runs pip; the last resort.
        attempt: runs pip, which may fail.
        say: called before the one that may be large is taken.

    Returns:
        What was taken and why, empty if nothing was to do.
    """
    build = {True: "cuda", False: "cpu"}[driver] if wanted == "auto" else wanted
    right = {"auto": (version, f"{version}+cpu"), "cpu": (f"{version}+cpu",), "cuda": (version,)}
    if installed in right[wanted]:
        return ""
    reason = "an NVIDIA driver was found" if driver else "no NVIDIA driver was found"
    asked = "" if wanted == "auto" else ", as asked"
    if build == "cuda":
        # Three signs: a CPU build of the same version, from a folder of wheels, is another one.
        if not run(["install", "-q", f"torch==={version}"]):
            raise SystemExit(f"The CUDA build of PyTorch {version} could not be installed.")
        return f"PyTorch {version} for CUDA{asked or f': {reason}'}; {HOW.format('cpu')}."
    quick = ["--retries", "1", "--timeout", "10", "--extra-index-url", CPU_INDEX]
    for places in ([], quick):
        if attempt(["install", "-q", *places, f"torch=={version}+cpu"]):
            return f"PyTorch {version} for CPUs{asked or f': {reason}'}; {HOW.format('cuda')}."
    say(
        f"Neither pip's own places nor {CPU_INDEX} have PyTorch {version} for CPUs: taking what "
        "pip finds, perhaps the build for CUDA, 5.5 GB ..."
    )
    if not run(["install", "-q", f"torch=={version}"]):
        raise SystemExit(f"PyTorch {version} could not be installed.")
    return f"PyTorch {version}, as pip found it."


def main(arguments: Sequence[str]) -> None:
    """Install PyTorch into the environment of this Python."""
    wanted = arguments[0] if arguments else "auto"
    if len(arguments) > 1 or wanted not in CHOICES:
        raise SystemExit(f"TORCH is {' '.join(arguments)!r}; expected one of {', '.join(CHOICES)}.")
    version = pinned_version(CONSTRAINTS.read_text("utf-8"))
    driver = has_driver()
    said = install(wanted, version, installed_version(), driver)
    if said:
        print(said)


if __name__ == "__main__":
    main(sys.argv[1:])
