"""The part of a configuration that says where the work is done, and how much of it at once.

Nothing of it decides what is made, but for the precision.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from rudalle_lib.config_sections import Positive, Section


def _a_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda|cuda:\d+", device):
        raise ValueError(f"expected auto, cpu, cuda or one device as cuda:0, found {device!r}")
    return device


class RuntimeConfig(Section):
    """Which devices are used, in which precision, and how much is under way at once."""

    runner: Literal["local", "ray"] = Field(
        default="local",
        description="local works in threads of one process, on the devices of its machine; ray on "
        "several devices or machines at once (needs the extra `ray`).",
    )
    ray_address: str | None = Field(
        default=None,
        min_length=1,
        description="Ray cluster to work on, as head:6379; null starts one on this machine for the "
        "time of the run.",
    )
    ray_cpus: Positive | None = Field(
        default=None,
        description="CPUs of the Ray that is started on this machine: tasks at once where there is "
        "no GPU. Null is all.",
    )
    devices: Annotated[str, AfterValidator(_a_device)] = Field(
        default="auto",
        description="auto (a GPU if there is one), cpu, cuda, or one device as cuda:0.",
    )
    limit_devices: bool = Field(
        default=False,
        description="One heavy task a device across all runs of a Prefect server, by its global "
        "concurrency limits; otherwise within a run. With ray the cluster sees to it anyway.",
    )
    dtype: Literal["float32", "bfloat16", "float16", "int8", "int8_dynamic"] = Field(
        default="float32",
        description="Precision of the decoder; int8 stores its layers in 8 bits, for one that is "
        "too large otherwise; int8_dynamic also multiplies in 8 bits, the fastest for a large one "
        "on a CPU.",
    )
    split_decoder: bool = Field(
        default=False,
        description="Spread the decoder's layers over all devices, for one that is too large for "
        "one device; otherwise each device has a whole one.",
    )
    threads: Positive | None = Field(
        default=None, description="CPU threads of the networks; null leaves PyTorch's choice."
    )
    shards_in_flight: Positive = Field(default=2, description="Shards that are worked on at once.")
    lease_seconds: float = Field(
        default=120.0,
        ge=1,
        description="A run that gave no sign of life for so long has lost its output to the next.",
    )
    max_failed_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Stop the run when more than this share of the work of its last shards failed; "
        "1 never stops.",
    )
    price_per_device_hour: float | None = Field(
        default=None,
        ge=0,
        description="What a device costs an hour, in any currency; with it runs tell their cost.",
    )

    @property
    def device(self) -> str:
        """The one device setting, by its singular name."""
        return self.devices

    @model_validator(mode="before")
    @classmethod
    def _accept_singular(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "device" not in data:
            return data
        if "devices" in data:
            raise ValueError("device and devices are the same setting; give one of them")
        return {"devices" if key == "device" else key: value for key, value in data.items()}
