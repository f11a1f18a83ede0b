"""Comparing two outputs by their URLs, one of which may be a pattern."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from rudalle_lib.comparison.drift import Comparison, compare_figures
from rudalle_lib.comparison.earlier import is_pattern, newest_two, output_before
from rudalle_lib.comparison.figures import has_embeddings, read_figures
from rudalle_lib.dataset.manifests import require_run_manifest
from rudalle_lib.errors import ConfigError
from rudalle_lib.storage.storage import Storage

PACKAGES = ("imagehash", "scipy")
"""What a comparison needs besides the packages of a run."""


def check_installed() -> None:
    """Check that the packages of a comparison are installed.

    Raises:
        ConfigError: one of them is not.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"Comparing datasets needs {' and '.join(missing)}, which is not installed. "
            "Install it with: pip install -c constraints.txt '.[compare]'"
        )


def find_outputs(before: str, after: str | None) -> tuple[Storage, Storage]:
    """The two outputs to compare.

    Args:
        before: an output; or a pattern, such as `s3://bucket/daily-*`, which means the one that
            finished last before `after`.
        after: an output; None means the newest one of the pattern, and `before` the one before it.

    Raises:
        ConfigError: there are not two outputs to compare.
    """
    if after is not None and is_pattern(after):
        raise ConfigError(f"Only the first output may be a pattern, found {after}.")
    if after is None:
        if not is_pattern(before):
            raise ConfigError(
                "Give two outputs, or a pattern for several, such as 's3://bucket/daily-*'."
            )
        return newest_two(before)
    later = Storage(after)
    return (output_before(before, later) if is_pattern(before) else Storage(before)), later


def compare_outputs(
    before: Storage,
    after: Storage,
    by: str | None = None,
    limits: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare two finished datasets.

    Args:
        before, after: their outputs.
        by: a column of the prompt tables that groups prompts.
        limits: from `drift.parse_limits`.

    Raises:
        ConfigError: a column or figure that they do not have, or missing packages.
        StorageError, ShardError: one of them has no finished run, or is damaged.
    """
    check_installed()
    runs = (require_run_manifest(before), require_run_manifest(after))
    embeddings = all(has_embeddings(run) for run in runs)
    was, now = (read_figures(output, by, embeddings) for output in (before, after))
    return compare_figures(was, now, limits)
