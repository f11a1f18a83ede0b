"""What every stage needs to know besides its own settings."""

from __future__ import annotations

from dataclasses import dataclass

from rudalle_lib.config import WeightsConfig
from rudalle_lib.config_runtime import RuntimeConfig
from rudalle_lib.records import ShardSpec


@dataclass(frozen=True)
class Job:
    """A shard to work on, the output that holds it, and the means to do so.

    `lease` is the number of the run's lease of the output; who does not hold it any more must not
    publish.
    """

    shard: ShardSpec
    output: str
    runtime: RuntimeConfig
    weights: WeightsConfig
    lease: int | None = None
