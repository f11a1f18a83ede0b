"""Parsing of YAML text, and of overrides such as `--set a.b=value`, into a plain dictionary."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, get_origin

from pydantic import BaseModel

from rudalle_lib.config.base import union_members
from rudalle_lib.config.yaml_text import YamlError, load_yaml
from rudalle_lib.errors import ConfigError

MAX_CHARACTERS = 1_000_000
"""The longest text that is parsed; a run configuration is about a page."""


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Parse the YAML text of a configuration.

    Args:
        text: a mapping of settings, or nothing for the defaults.
        source: the name of the file or URL, for error messages.

    Raises:
        ConfigError: the text is too long, not valid YAML, or not a mapping.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"{source} is too large for a run configuration: expected at most "
            f"{MAX_CHARACTERS:,} characters, found {len(text):,}."
        )
    try:
        data = load_yaml(text)
    except YamlError as error:
        wrong_kind = "is not a run configuration: it " if "nested" in str(error) else ""
        raise ConfigError(f"{source} {wrong_kind}{error}.") from None
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
    """Apply overrides such as `a.b=value` to a copy of the data.

    Values are parsed as YAML, except if the field of the model is a string: then they are used
    verbatim (`output=2024`). Whether a key exists is not checked here but when the model is
    validated.

    Raises:
        ConfigError: an override has no `key=value` form, sets a key inside a single value, or its
            value is not valid YAML.
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
        section = data.setdefault(name, {})
        if section is None:
            section = data[name] = {}
        if not isinstance(section, dict):
            raise ConfigError(
                f"Cannot set {'.'.join(path)}: {'.'.join(path[: depth + 1])} is a single value, "
                "not a section."
            )
        data = section
    data[leaf] = value


def _read_value(value: str, path: list[str], model: type[BaseModel], override: str) -> Any:
    annotation = _annotation(path, model)
    members = union_members(annotation)
    if str in members and (value not in ("null", "") or type(None) not in members):
        return value
    try:
        return load_yaml(value)
    except YamlError as error:
        raise ConfigError(
            f"Cannot read the value of the override {override!r}: it {error}."
        ) from None


def _annotation(path: list[str], model: type[BaseModel]) -> Any:
    """The type of the field at a path, None if there is no such field."""
    annotation: Any = model
    for name in path:
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return str if get_origin(annotation) is dict else None
        field = annotation.model_fields.get(name)
        if field is None:
            return None
        annotation = field.annotation
    return annotation
