"""What sections share: identity, URLs without credentials, and ranges of numbers."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
import pytest
from pydantic import Field

from rudalle_lib.config.base import NOT_IDENTITY, Gpus, Section, Url, within
from rudalle_lib.config.inputs import WeightsConfig
from rudalle_lib.schema.ranges import RANGES, Range


class Example(Section):
    """A section with one field of each kind."""

    url: Url = "output"
    gpus: Gpus = None
    speed: int = Field(default=1, json_schema_extra=NOT_IDENTITY)
    size: int = 2


def test_the_identity_excludes_speed_and_fields_that_are_not_used() -> None:
    assert Example(speed=5).identity() == {"url": "output", "size": 2}
    assert Example(gpus=2).identity(exclude=["url"]) == {"size": 2}


@pytest.mark.parametrize("gpus", [None, 0, 0.25, 1, 2, 1024])
def test_gpus_are_whole_numbers_or_a_fraction_of_one(gpus: float | None) -> None:
    assert Example(gpus=gpus).gpus == gpus


@pytest.mark.parametrize("gpus", [-1, 1.5, 2.25, 1025, float("inf")])
def test_other_numbers_of_gpus_are_rejected(gpus: float) -> None:
    with pytest.raises(pydantic.ValidationError, match="gpus"):
        Example(gpus=gpus)


@pytest.mark.parametrize("url", ["", "  ", "s3://user:secret@bucket/x", "https://token@host/x"])
def test_urls_with_credentials_and_empty_urls_are_rejected(url: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="url") as error:
        Example(url=url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("allowed", RANGES.values(), ids=list(RANGES))
def test_a_field_has_the_limits_of_its_range(allowed: Range) -> None:
    annotation: Any = Annotated[allowed.kind, within(allowed)]
    field: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
    assert field.validate_python(allowed.maximum) == allowed.maximum
    if not allowed.exclusive_minimum:
        assert field.validate_python(allowed.minimum) == allowed.minimum
    too_small = allowed.minimum if allowed.exclusive_minimum else allowed.minimum - 1
    for value in (too_small, allowed.maximum + 1):
        with pytest.raises(pydantic.ValidationError):
            field.validate_python(value)


class Grown(Section):
    """A section with a setting that an earlier version did not have."""

    added_later = ("new",)
    old: int = 1
    new: int = 2


class Whole(Section):
    """A configuration with that section."""

    part: Grown = Grown()


def test_a_later_setting_with_its_default_is_in_no_digest() -> None:
    assert Whole().digested() == {"part": {"old": 1}}
    assert Grown().identity() == {"old": 1}
    changed = Grown(new=3)
    assert Whole(part=changed).digested() == {"part": {"old": 1, "new": 3}}
    assert changed.identity() == {"old": 1, "new": 3}


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    assert WeightsConfig(folder="~/weights").folder == "/home/anna/weights"
