"""`lineage.json`: which dataset an output was rendered from; written before anything else."""

from __future__ import annotations

import json
from dataclasses import asdict

from rudalle_lib.dataset import layout
from rudalle_lib.errors import DamagedError
from rudalle_lib.schema.lineage import Lineage
from rudalle_lib.storage.storage import Storage


def write_lineage(storage: Storage, lineage: Lineage) -> None:
    """Write `lineage.json`, which `run.json` and the dataset card repeat."""
    content = json.dumps(asdict(lineage), ensure_ascii=False, indent=2, sort_keys=True)
    storage.write_bytes(layout.LINEAGE, f"{content}\n".encode())


def read_lineage(storage: Storage) -> Lineage | None:
    """The dataset that an output was rendered from; None if it was drawn.

    Raises:
        DamagedError: `lineage.json` is something else.
    """
    content = storage.read_bytes_if_any(layout.LINEAGE)
    if content is None:
        return None
    try:
        return lineage_of(json.loads(content))
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{storage.public_path(layout.LINEAGE)} does not say what this dataset was rendered "
            f"from ({type(error).__name__}: {error}); move it away, and run again without it."
        ) from None


def lineage_of(values: dict[str, object]) -> Lineage:
    """A lineage from its JSON values; a TypeError or ValueError if they are something else."""
    made = Lineage(**values)  # type: ignore[arg-type]
    pairs = {key: (before, now) for key, (before, now) in made.changes.items()}
    texts = (made.source, made.name, made.finished, made.run)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("expected texts")
    return Lineage(*texts, pairs)
