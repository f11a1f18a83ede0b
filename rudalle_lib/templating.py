"""Fill `{{name}}` places of the packaged templates (gallery page, dataset card)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources


def read_template(name: str) -> bytes:
    """A file of `rudalle_lib/templates`, as it is."""
    return resources.files("rudalle_lib").joinpath("templates", name).read_bytes()


def fill(template: str, parts: Mapping[str, str]) -> str:
    """The packaged text `template` with every `{{name}}` replaced by its part.

    Parts are not looked into: one that itself says `{{name}}` stays as it is.
    """
    text = read_template(template).decode()
    head, *pieces = (piece.partition("}}") for piece in text.split("{{"))
    return head[0] + "".join(parts[name] + rest for name, _, rest in pieces)
