"""Prefect tasks: one thin file per pipeline stage."""
