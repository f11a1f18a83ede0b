"""From pydantic's list of faults to one sentence a fault: the key, what it may be, what it was."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

import pydantic
from pydantic import BaseModel

from rudalle_lib.errors import ConfigError

#: Faults that are told at once, and characters of a key that are shown.
MOST_FAULTS = 10
LONGEST_KEY = 80


def error_from_validation(
    error: pydantic.ValidationError, model: type[BaseModel], source: str
) -> ConfigError:
    """A `ConfigError` that names every faulty key; `source` is the file or URL that was read."""
    faults = error.errors(include_url=False)
    sentences = [_sentence(fault, model) for fault in faults[:MOST_FAULTS]]
    if len(faults) > MOST_FAULTS:
        sentences.append(f"And {len(faults) - MOST_FAULTS:,} more.")
    return ConfigError(f"{source}: " + " ".join(sentences))


def _sentence(fault: Any, model: type[BaseModel]) -> str:
    path = [str(part)[:LONGEST_KEY] for part in fault["loc"]]
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return _unknown_key(path, model)
    if fault["type"] == "missing":
        return f"The key {key} is missing."
    if fault["type"] == "model_type":
        known = ", ".join(known_keys(path, model))
        return f"{key} is a section with the keys {known}; found {_shown(fault['input'])}."
    reason = _reason(fault)
    if not key:
        return f"{reason[0].upper()}{reason[1:]}."
    if fault["type"] == "value_error":  # one of ours: it says what was found where that is safe
        return f"{key}: {reason}."
    return f"{key}: {reason}; found {_shown(fault['input'])}."


def _reason(fault: Any) -> str:
    if fault["type"] == "literal_error":
        return f"expected {fault['ctx']['expected']}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    for prefix in ("Input should be ", "String should "):
        if message.startswith(prefix):
            return "expected " + message.removeprefix(prefix).removeprefix("match ")
    return message[0].lower() + message[1:]


def _unknown_key(path: list[str], model: type[BaseModel]) -> str:
    known = known_keys(path[:-1], model)
    where = ".".join(path[:-1])
    place = f"in {where}" if where else "of a run configuration"
    return (
        f"Unknown key {'.'.join(path)}{did_you_mean(path[-1], known)}; "
        f"the keys {place} are {', '.join(known)}."
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean x?)` for the nearest known name, nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def known_keys(path: list[str], model: type[BaseModel]) -> list[str]:
    """The keys of the section at a path (empty: the configuration itself)."""
    section = model
    for name in path:
        field = section.model_fields.get(name)
        annotation = field.annotation if field is not None else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)


def _shown(value: Any) -> str:
    """A short form that takes no longer for a value which YAML aliases blew up a billionfold."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    return short.repr(value)
