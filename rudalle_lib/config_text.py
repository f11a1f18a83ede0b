"""From YAML text and `--set a.b=value` overrides to the plain dictionary of a configuration."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from rudalle_lib.errors import ConfigError

#: A run configuration is a page of text; more than this is something else.
MAX_CHARACTERS = 1_000_000


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Read YAML that must hold a mapping (or nothing, the defaults); `source` is for errors."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"{source} is too large for a run configuration: expected at most "
            f"{MAX_CHARACTERS:,} characters, found {len(text):,}."
        )
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        raise ConfigError(f"{source} is not valid YAML: {_one_line(error)}.") from None
    except RecursionError:
        raise ConfigError(f"{source} is not a run configuration: it is nested too deep.") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source} should hold settings as `key: value`, found {type(data).__name__}."
        )
    return data


def apply_overrides(
    data: dict[str, Any], overrides: Iterable[str], model: type[BaseModel]
) -> dict[str, Any]:
    """A copy of `data` in which each `a.b=value` has been set; values are read as YAML.

    Where the model's field is text, the value is taken as it stands (`output=2024`). Whether the
    key exists is left to the model's own validation.
    """
    result = copy.deepcopy(data)
    for override in overrides:
        key, equals, value = override.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise ConfigError(
                f"Cannot read the override {override!r}: expected key=value, for example "
                "generate.images=4."
            )
        _set(result, path, _read_value(value, path, model, override))
    return result


def _set(data: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, leaf = path
    for depth, name in enumerate(parents):
        below = data.setdefault(name, {})
        if below is None:
            below = data[name] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"Cannot set {'.'.join(path)}: {'.'.join(path[: depth + 1])} is a single value, "
                "not a section."
            )
        data = below
    data[leaf] = value


def _read_value(value: str, path: list[str], model: type[BaseModel], override: str) -> Any:
    annotation = _annotation(path, model)
    options = _options(annotation)
    if str in options and (value not in ("null", "") or type(None) not in options):
        return value
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"Cannot read the value of the override {override!r}: {_one_line(error)}."
        ) from None


def _annotation(path: list[str], model: type[BaseModel]) -> Any:
    """The type of the field at a path, None where there is no such field."""
    annotation: Any = model
    for name in path:
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return str if get_origin(annotation) is dict else None
        field = annotation.model_fields.get(name)
        if field is None:
            return None
        annotation = field.annotation
    return annotation


def _options(annotation: Any) -> set[Any]:
    """The members of a union, through `Annotated`; a single type is a union of one."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return {option for member in get_args(annotation) for option in _options(member)}
    try:
        return {annotation}
    except TypeError:
        return set()


def _one_line(error: Exception) -> str:
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return " ".join(problem.split()) + place
