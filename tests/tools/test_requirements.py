"""The requirements of a container's layer."""

from __future__ import annotations

import pytest

from tools.requirements import PROJECT, requirements


def test_requirements_are_those_of_the_project_and_its_extras() -> None:
    project = PROJECT.read_text("utf-8")
    own = requirements(project, [])
    assert any(one.startswith("prefect") for one in own)
    assert not any(one.startswith("ray") for one in own)
    assert requirements(project, ["ray"])[: len(own)] == own
    assert requirements(project, ["ray"])[-1].startswith("ray")


def test_an_unknown_extra_names_the_known_ones() -> None:
    with pytest.raises(SystemExit, match="no extra 'rays': expected some of app, "):
        requirements(PROJECT.read_text("utf-8"), ["rays"])
