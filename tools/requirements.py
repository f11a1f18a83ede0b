"""Print what pyproject.toml asks for, one requirement per line, without the project itself.

A container installs it in a layer of its own, which changes only with the dependencies.

Usage: python tools/requirements.py [EXTRA ...]
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(project: str, extras: Sequence[str]) -> list[str]:
    """The requirements in the text of a pyproject.toml, with those of some extras."""
    table = tomllib.loads(project)["project"]
    known: dict[str, list[str]] = table["optional-dependencies"]
    unknown = [extra for extra in extras if extra not in known]
    if unknown:
        raise SystemExit(f"There is no extra {unknown[0]!r}: expected some of {', '.join(known)}.")
    return [*table["dependencies"], *(one for extra in extras for one in known[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(PROJECT.read_text("utf-8"), sys.argv[1:])))
