"""The Prefect flow, its runners and views, and the command line."""

from __future__ import annotations

from tasks.runtime.environment import prepare

prepare()
