"""Fill the `{{name}}` placeholders of the packaged templates (gallery page, dataset card)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources


def read_template(name: str) -> bytes:
    """Read a file of `rudalle_lib/report/assets`."""
    return resources.files("rudalle_lib.report").joinpath("assets", name).read_bytes()


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Return the packaged text `template` with every `{{name}}` replaced by its part.

    Parts are inserted verbatim: a part that contains `{{name}}` itself is not expanded.

    Raises:
        KeyError: when the template has a placeholder that `parts` lacks.
    """
    text = read_template(template).decode()
    head, *pieces = (piece.partition("}}") for piece in text.split("{{"))
    return head[0] + "".join(parts[name] + rest for name, _, rest in pieces)
