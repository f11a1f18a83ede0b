"""The rows that the measurements around the engine print."""

from __future__ import annotations


def row(what: str, figure: str) -> None:
    """Print one row of the table."""
    print(f"| {what:<52} | {figure:>22} |", flush=True)
