"""The configuration, prompt rows, Arrow columns and sampling settings accept the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import OVERRIDE_NAMES
from rudalle_lib.errors import ConfigError, SettingsError
from rudalle_lib.generation.sampling import SamplingSettings
from rudalle_lib.schema.arrow import from_table, to_table
from rudalle_lib.schema.ranges import INT32_MAX, INT64_MAX, RANGES
from rudalle_lib.schema.records import Overrides, Prompt, RejectRecord
from tests.support.prompt_tables import read_one

SAMPLING = ("temperature", "top_k", "top_p", "guidance")

NUMBERS = st.one_of(
    st.integers(-3, 1100),
    st.integers(),
    st.sampled_from([8191, 8192, 8193, INT32_MAX, INT32_MAX + 1, 3_000_000_000]),
    st.sampled_from([INT64_MAX, INT64_MAX + 1, 10**30, -(10**30)]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-0.5, 1.5),
    st.sampled_from([0.0, -0.0, 5e-324, 1.0, 100.0, 100.00000000000001, 1e308]),
)


def configured(name: str, value: float) -> float | None:
    """The value as the configuration has it, None if it is rejected with a message."""
    data = {name: value} if name == "seed" else {"generate": {name: value, "size_unit": "tokens"}}
    try:
        config = RunConfig.parse(repr(data))
    except ConfigError as error:
        key = name if name == "seed" else f"generate.{name}"
        assert f"{key}: expected " in str(error)
        return None
    accepted = config.seed if name == "seed" else getattr(config.generate, name)
    assert isinstance(accepted, int | float)
    return accepted


def overridden(folder: Path, name: str, value: float) -> float | None:
    """The value as a prompt has it, None if its row is rejected with a message."""
    row = read_one(folder, {"prompt": "a", name: value})
    if isinstance(row, Prompt):
        accepted = row.overrides.given()[name]
        assert isinstance(accepted, int | float)
        return accepted
    assert isinstance(row, RejectRecord) and row.reason == "bad_override"
    assert f"{name} must be {RANGES[name]}, found " in row.detail
    return None


def sampled(name: str, value: float) -> float | None:
    """The value as the sampler has it, None if it is rejected with a message."""
    settings: dict[str, Any] = {name: value}
    try:
        return float(getattr(SamplingSettings(**settings), name))
    except SettingsError as error:
        assert str(error).startswith(f"{name}: expected {RANGES[name]}, found ")
        return None


@pytest.mark.parametrize("name", RANGES)
@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(value=NUMBERS)
def test_a_value_is_accepted_everywhere_or_nowhere(tmp_path: Path, name: str, value: float) -> None:
    accepted = configured(name, value)
    assert overridden(tmp_path, name, value) == accepted
    if name in SAMPLING and (RANGES[name].kind is float or isinstance(value, int)):
        assert sampled(name, value) == accepted
    if accepted is None:
        assert value not in RANGES[name] or not float(value).is_integer()
    else:
        assert value in RANGES[name]
        cell: dict[str, Any] = {name: accepted}
        overrides = [Overrides(**cell)]
        assert from_table(to_table(overrides, Overrides), Overrides) == overrides


@pytest.mark.parametrize("name", RANGES)
def test_the_ends_of_a_range_fit_its_column(name: str) -> None:
    allowed = RANGES[name]
    lowest: Any = 5e-324 if allowed.exclusive_minimum else allowed.minimum
    for value in (lowest, allowed.maximum):
        cell: dict[str, Any] = {name: value}
        overrides = [Overrides(**cell)]
        assert from_table(to_table(overrides, Overrides), Overrides) == overrides
        assert value in allowed
    assert allowed.maximum + 1 not in allowed and allowed.minimum - 1 not in allowed
    assert float("nan") not in allowed


def test_there_is_a_range_for_every_number_that_a_row_may_override() -> None:
    paths = {"image_prompt", "image_prompt_borders"}
    assert [name for name in OVERRIDE_NAMES if name not in paths] == list(RANGES)


def test_a_range_in_words() -> None:
    assert str(RANGES["images"]) == "a whole number from 1 to 1,000"
    assert str(RANGES["temperature"]) == "a number above 0 and at most 100"
    assert str(RANGES["guidance"]) == "a number from 0 to 100"
