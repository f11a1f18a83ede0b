"""YAML by the rules of YAML 1.2, and nothing that surprises.

PyYAML reads YAML 1.1, where `010` is 8, `1:30` is 90 and `no` is false, and where the second of two
equal keys silently wins. Here `010` is 10, `1:30` and `no` are texts, and a key that is given twice
is an error. Anchors and merge keys (`<<`) work, but not to make a small text large.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_VALUES = 50_000
"""The most values and keys of a text, with those that aliases repeat."""

_TAG = "tag:yaml.org,2002:"


class YamlError(ValueError):
    """A text that is not YAML as it is read here; the message is the second half of a sentence."""


def load_yaml(text: str) -> Any:
    """The value of a YAML text: dictionaries, lists, texts, numbers, booleans and None.

    Raises:
        YamlError: it is not valid YAML, repeats a key, has too many values, or is nested too deep.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check(root)
        return loader.construct_document(root)
    except RecursionError:
        raise YamlError("is nested too deep") from None
    except YamlError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of too many digits
        raise YamlError(f"is not valid YAML: {_one_line(error)}") from None
    finally:
        if loader is not None:
            loader.dispose()


# --- scalars -------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Composes a limited number of values, and resolves scalars like YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """A value of the text, and all in it."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise YamlError(f"has more than {MAX_VALUES:,} values")
        return super().compose_node(parent, index)


def _construct_int(loader: yaml.SafeLoader, node: ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _construct_float(loader: yaml.SafeLoader, node: ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _construct_bool(loader: yaml.SafeLoader, node: ScalarNode) -> bool:
    text = str(loader.construct_scalar(node)).lower()
    if text not in ("true", "false"):
        raise YamlError(f"has {text[:40]!r} for true or false{_place(node)}")
    return text == "true"


def _construct_text(loader: yaml.SafeLoader, node: ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if text.isascii():
        return text
    # PyYAML leaves the two halves of characters that JSON writes as two escapes.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


# The core schema: https://yaml.org/spec/1.2.2/#1032-tag-resolution
_SCALARS: Iterable[tuple[str, str, str]] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)

for _name, _pattern, _first in _SCALARS:
    _letters = ["" if letter == "\0" else letter for letter in _first]
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), _letters)
for _name, _constructor in (
    ("int", _construct_int),
    ("float", _construct_float),
    ("bool", _construct_bool),
    ("str", _construct_text),
):
    _Loader.add_constructor(_TAG + _name, _constructor)


# --- checks --------------------------------------------------------------------------------------


def _check(root: Node) -> None:
    """Check that no key is repeated, and that aliases do not repeat too many values.

    Raises:
        YamlError: otherwise.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size_of(node: Node, path: str) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise YamlError(f"has an alias for what it is part of{_place(node)}")
        open_nodes.add(id(node))
        size = 1
        if isinstance(node, MappingNode):
            _check_keys(node, path)
            for key, value in node.value:
                below = f"{path}.{_name_of(key)}".lstrip(".")
                size += size_of(key, below) + size_of(value, below)
        elif isinstance(node, SequenceNode):
            for item in node.value:
                size += size_of(item, path)
        if size > MAX_VALUES:
            raise YamlError(
                f"has aliases that repeat more than {MAX_VALUES:,} values{_place(node)}"
            )
        open_nodes.discard(id(node))
        sizes[id(node)] = size
        return size

    size_of(root, "")


def _check_keys(node: MappingNode, path: str) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            continue
        line, name = key.start_mark.line + 1, (key.tag, key.value)
        if name in lines:
            shown = f"{path}.{key.value}".lstrip(".")[:200]
            raise YamlError(
                f"gives the key {shown} twice, in line {lines[name]} and in line {line}; join "
                "what belongs to it"
            )
        lines[name] = line


def _name_of(key: Node) -> str:
    return str(key.value)[:80] if isinstance(key, ScalarNode) else "..."


def _place(node: Node) -> str:
    return f" (line {node.start_mark.line + 1}, column {node.start_mark.column + 1})"


def _one_line(error: Exception) -> str:
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return " ".join(problem.split()) + place
