"""Configurations that are invalid, and what is said about them."""

from __future__ import annotations

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import ConfigError


def config_error(text: str, *overrides: str) -> str:
    """The message about an invalid configuration: a single line."""
    with pytest.raises(ConfigError) as error:
        RunConfig.parse(text, overrides, "run.yaml")
    message = str(error.value)
    assert "\n" not in message
    return message
