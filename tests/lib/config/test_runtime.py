"""The runtime section: devices and their spellings."""

from __future__ import annotations

from rudalle_lib.config.run import RunConfig
from tests.support.configs import config_error


def test_device_is_another_spelling_of_devices() -> None:
    assert RunConfig.parse("runtime: {device: 'cuda:1'}").runtime.devices == "cuda:1"
    assert "device and devices" in config_error("runtime: {device: cpu, devices: cpu}")
