"""The part of a configuration that says where a run works, and how much of it concurrently.

None of it changes the output of a run, except the precision of the decoder.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from rudalle_lib.config.base import CpuCount, Positive, Section

MAX_LEASE_SECONDS = 30 * 24 * 3600
"""A month. Waits of centuries overflow the clocks of the threads that renew a lease."""

MAX_PRICE = 1e9
"""The highest price of a device per hour, in any currency."""


def _check_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda|cuda:\d{1,4}", device):
        raise ValueError(f"expected auto, cpu, cuda or one device as cuda:0, found {device!r}")
    return device


class RuntimeConfig(Section):
    """Devices, precision, and how much is in progress at the same time."""

    runner: Literal["local", "ray"] = Field(
        default="local",
        description="Where tasks run. local: on the devices of this machine, several GPUs with a "
        "process each. ray: by workers on several devices or machines, one per GPU; needs the "
        "extra `ray`.",
    )
    ray_address: str | None = Field(
        default=None,
        min_length=1,
        description="Address of a Ray cluster, for example head:6379. null starts Ray on this "
        "machine for the duration of the run.",
    )
    ray_cpus: CpuCount | None = Field(
        default=None,
        description="CPUs that a Ray started on this machine may use. Without GPUs this limits "
        "the number of workers. null is all CPUs.",
    )
    devices: Annotated[str, AfterValidator(_check_device)] = Field(
        default="auto",
        description="Devices to use. auto: all GPUs, or the CPU if there are none. cpu. cuda: all "
        "GPUs. cuda:0: only that GPU.",
    )
    limit_devices: bool = Field(
        default=False,
        description="Run one heavy task per device across all runs of a Prefect server, with its "
        "global concurrency limits. If off, only across the tasks of this run. On Ray it has no "
        "effect: Ray gives a GPU to one worker of all runs on its cluster.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int8_dynamic"] = Field(
        default="float32",
        description="Precision of the decoder. auto is the fastest one that draws what float32 "
        "draws on the devices of the machine that reads the configuration: bfloat16, or float32 on "
        "old GPUs and where nothing is compiled; an output keeps the one that its run began with. "
        "int8 stores its layers in 8 bits, for a decoder "
        "that does not fit into memory otherwise. int8_dynamic also multiplies in 8 bits, which "
        "is fastest for a large decoder on a CPU; on a GPU it needs compute capability 8.0.",
    )
    split_decoder: bool = Field(
        default=False,
        description="Spread the layers of one decoder over all devices, if it is too large for "
        "one. If off, each device has a complete decoder.",
    )
    threads: CpuCount | None = Field(
        default=None,
        description="CPU threads per network, 1 or more. null leaves the choice to PyTorch.",
    )
    shards_in_flight: Positive | None = Field(
        default=None,
        description="Shards that are processed at the same time, 1 or more. null is two per GPU, "
        "or two without GPUs. A Ray cluster is asked for a worker for every two of them.",
    )
    lease_seconds: float = Field(
        default=120.0,
        ge=1,
        le=MAX_LEASE_SECONDS,
        description="A running run renews its lease of the output folder. If it has not done so "
        "for this many seconds, another run may take the folder over. From 1 second to 30 days.",
    )
    max_failed_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Stop the run if more than this share of the work in its last shards failed, "
        "from 0 to 1. 1 never stops.",
    )
    price_per_device_hour: float | None = Field(
        default=None,
        ge=0,
        le=MAX_PRICE,
        description="Price of one device per hour, in any currency. If given, the report of a "
        "run includes its cost.",
    )

    def digested(self) -> dict[str, Any]:
        """All settings; the automatic number of shards counts as 2, the default of 0.1."""
        return {**super().digested(), "shards_in_flight": self.shards_in_flight or 2}

    @model_validator(mode="before")
    @classmethod
    def _accept_singular(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "device" not in data:
            return data
        if "devices" in data:
            raise ValueError("device and devices are the same setting; give one of them")
        return {"devices" if key == "device" else key: value for key, value in data.items()}
