"""Validation errors of pydantic in plain sentences, each with its key, expectation and value."""

from __future__ import annotations

import reprlib
from typing import Any, get_args, get_origin

import pydantic
from pydantic import BaseModel

from rudalle_lib.errors import ConfigError
from rudalle_lib.humanize import did_you_mean

MAX_ERRORS = 10
"""Errors that are reported together; the others are only counted."""

MAX_KEY_LENGTH = 80
"""Characters shown of each part of a key."""


def error_from_validation(
    error: pydantic.ValidationError, model: type[BaseModel], source: str
) -> ConfigError:
    """One `ConfigError` that names every invalid key.

    Args:
        error: the error that pydantic raised.
        model: the model that was validated.
        source: the file or URL that the settings were read from.
    """
    details = error.errors(include_url=False)
    sentences = [_sentence(detail, model) for detail in details[:MAX_ERRORS]]
    if len(details) > MAX_ERRORS:
        sentences.append(f"And {len(details) - MAX_ERRORS:,} more.")
    return ConfigError(f"{source}: " + " ".join(sentences))


def _sentence(detail: Any, model: type[BaseModel]) -> str:
    path = [str(part)[:MAX_KEY_LENGTH] for part in detail["loc"]]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        return _unknown_key(path, model)
    if detail["type"] == "missing":
        return f"The key {key} is missing."
    if detail["type"] == "model_type":
        known = ", ".join(known_keys(path, model))
        return f"{key} is a section with the keys {known}; found {_shorten(detail['input'])}."
    reason = _reason(detail)
    if not key:
        return f"{reason[0].upper()}{reason[1:]}."
    if detail["type"] == "value_error":  # our own, which shows the value if that is safe
        return f"{key}: {reason}."
    return f"{key}: {reason}; found {_shorten(detail['input'])}."


def _reason(detail: Any) -> str:
    if detail["type"] == "literal_error":
        return f"expected {detail['ctx']['expected']}"
    if detail["type"] == "int_parsing_size":
        return "expected a valid integer of at most 64 bits"
    message = str(detail["msg"]).removeprefix("Value error, ")
    for prefix in ("Input should be ", "String should "):
        if message.startswith(prefix):
            return "expected " + message.removeprefix(prefix).removeprefix("match ")
    return message[0].lower() + message[1:]


def _unknown_key(path: list[str], model: type[BaseModel]) -> str:
    known = known_keys(path[:-1], model)
    section = ".".join(path[:-1])
    place = f"in {section}" if section else "of a run configuration"
    return (
        f"Unknown key {'.'.join(path)}{did_you_mean(path[-1], known)}; "
        f"the keys {place} are {', '.join(known)}."
    )


def known_keys(path: list[str], model: type[BaseModel]) -> list[str]:
    """The keys of the section at a path; an empty path is the configuration itself.

    Returns:
        The keys in order; none if there is no section at the path.
    """
    annotation: Any = model
    for name in path:
        if name.isdecimal() and get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
            continue
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
            continue
        fields = annotation.model_fields if _is_section(annotation) else {}
        annotation = fields[name].annotation if name in fields else None
    return list(annotation.model_fields) if _is_section(annotation) else []


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _shorten(value: Any) -> str:
    """A short form of a value, fast even if YAML aliases expanded it a billionfold."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    return short.repr(value)
