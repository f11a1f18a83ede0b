"""Printing of measured figures as table rows."""

from __future__ import annotations


def row(what: str, figure: str) -> None:
    """Print one row of a Markdown table."""
    print(f"| {what:<52} | {figure:>22} |", flush=True)
