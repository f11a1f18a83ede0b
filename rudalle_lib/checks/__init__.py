"""Checks of a run before it starts, of finished datasets, and of models."""
