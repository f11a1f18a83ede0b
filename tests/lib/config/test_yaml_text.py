"""YAML is read by the rules of YAML 1.2, within bounds."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.config.yaml_text import YamlError, load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("nULL", "nULL"),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("NO", "NO"),
        ("010", 10),
        ("-010", -10),
        ("0o10", 8),
        ("0x10", 16),
        ("0b10", "0b10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("1E-3", 0.001),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("2026-11-29", "2026-11-29"),
        ("2026-11-29T10:00:00Z", "2026-11-29T10:00:00Z"),
        ("=", "="),
        ("'010'", "010"),
        ('"true"', "true"),
        ("!!str 10", "10"),
        ("!!int '12'", 12),
        ("!!float 1", 1.0),
        ("a: 1\n<<: {b: 2, a: 3}", {"a": 1, "b": 2}),
        ("[a, *x]".replace("a", "&x 1", 1), [1, 1]),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: Any) -> None:
    found = load_yaml(text)
    assert found == value and type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(load_yaml(".nan"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=10),
    lambda below: st.lists(below, max_size=4)
    | st.dictionaries(st.sampled_from(["a", "b", "no", "1"]), below, max_size=3),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_json_is_yaml(value: Any) -> None:
    assert load_yaml(json.dumps(value, indent=1)) == json.loads(json.dumps(value))


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_what_others_write_is_read_back(value: Any) -> None:
    """PyYAML quotes every text that YAML 1.1 would change."""
    assert load_yaml(yaml.safe_dump(value, allow_unicode=True)) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "gives the key a twice, in line 1 and in line 2"),
        ("x:\n- {b: 1, b: 1}", "gives the key x.b twice, in line 2 and in line 2"),
        ("a: &a\n  b: *a", "has an alias for what it is part of (line 1, column 4)"),
        ("!!bool yes", "has 'yes' for true or false (line 1, column 1)"),
        ("!!int x", "is not valid YAML"),
        ("9" * 5000, "is not valid YAML"),
        ("!!python/name:os.system", "is not valid YAML"),
        ("a: b: c", "is not valid YAML: mapping values are not allowed here (line 1, column 5)"),
        ("--- a\n--- b", "is not valid YAML"),
        ("*x", "is not valid YAML"),
        ("a: \x00", "is not valid YAML"),
        ("[" * 5000, "is nested too deep"),
        ("- 1\n" * 50_001, "has more than 50,000 values"),
        ("\n".join(["- &a x", *["- *a"] * 50_001]), "values"),
    ],
)
def test_bad_text_is_one_clear_problem(text: str, problem: str) -> None:
    started = time.monotonic()
    with pytest.raises(YamlError) as error:
        load_yaml(text)
    assert problem in str(error.value) and "\n" not in str(error.value)
    assert time.monotonic() - started < 30
