"""`dtype: auto`: precisions that a configuration leaves to the machine that reads it.

They are replaced while the configuration is read, so everything that follows, fingerprints and
`run.json` included, sees only the precision that was chosen. An output keeps the precision that its
run began with: another machine that resumes it would otherwise draw everything again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rudalle_lib.errors import RudalleError, SettingsError

if TYPE_CHECKING:
    from rudalle_lib.storage.storage import Storage

AUTO = "auto"

SECTIONS = {"runtime": "decoder", "decode": "images", "score": "images", "upscale": "images"}
"""Sections that have a precision, with what their network is like."""

PRECISION_FILE = "precision.json"
"""The file of an output with the precision of each section, written when a run begins."""

RUN_MANIFEST = "run.json"
"""The file of an output with the configuration of its last finished run."""


def choose_precisions(
    config: Mapping[str, Mapping[str, Any] | None], output: str | None = None
) -> dict[str, str]:
    """The precision of every section that says `auto`: that of the output, else of this machine.

    Args:
        config: the sections as mappings; None for a section that is something else.
        output: where the run writes to; None if it is not known.

    Raises:
        ValueError: the devices are not on this machine.
    """
    sections = {name: section for name in SECTIONS if (section := config.get(name)) is not None}
    chosen = [name for name, section in sections.items() if section.get("dtype") == AUTO]
    recorded = {} if output is None or not chosen else recorded_precisions(output)
    best = _best_here(config, [name for name in chosen if name not in recorded])
    return {name: recorded.get(name) or best[name] for name in chosen}


def _best_here(config: Mapping[str, Mapping[str, Any] | None], names: list[str]) -> dict[str, str]:
    """The best precision on this machine for the networks of some sections."""
    if not names:
        return {}
    runtime = config.get("runtime") or {}
    setting = str(runtime.get("devices") or runtime.get("device") or AUTO)
    if runtime.get("ray_address") is not None:
        raise ValueError(
            f"the precision auto of {names[0]}.dtype depends on this machine, but the devices are "
            "those of the cluster runtime.ray_address; name the precision, such as bfloat16"
        )
    from rudalle_lib.runtime.devices import best_dtype, best_image_dtype, resolve_devices

    try:
        devices = resolve_devices(setting)
    except SettingsError as error:
        raise ValueError(
            f"the precision auto of {names[0]}.dtype depends on this machine, but {error}"
        ) from None
    best = {"decoder": best_dtype, "images": best_image_dtype}
    return {name: best[SECTIONS[name]](devices) for name in names}


def recorded_precisions(output: str) -> dict[str, str]:
    """The precision of each section with which an output was begun; empty if there is none.

    Outputs of before this was recorded have it in `run.json`. Nothing is an error here: a run
    checks its output later, and says what is wrong with it.
    """
    from rudalle_lib.storage.storage import Storage  # imports pyarrow

    with suppress(RudalleError, ValueError, TypeError, AttributeError, KeyError):
        storage = Storage(output)
        content = storage.read_bytes_if_any(PRECISION_FILE)
        if content is not None:
            return _texts(json.loads(content))
        content = storage.read_bytes_if_any(RUN_MANIFEST)
        if content is not None:
            config = json.loads(content)["config"]
            return _texts({name: config.get(name, {}).get("dtype") for name in SECTIONS})
    return {}


def record_precisions(storage: Storage, precisions: Mapping[str, str]) -> None:
    """Write the precision of each section to an output; a file of somebody else's stays."""
    content = json.dumps(dict(precisions), indent=2, sort_keys=True).encode() + b"\n"
    found = storage.read_bytes_if_any(PRECISION_FILE)
    if found is None or (found != content and _is_ours(found)):
        storage.write_bytes(PRECISION_FILE, content)


def _is_ours(content: bytes) -> bool:
    with suppress(ValueError, AttributeError):
        return "runtime" in _texts(json.loads(content))
    return False


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value for name in SECTIONS if isinstance(value := values.get(name), str) and value
    }
