"""What every stage needs in addition to its own settings."""

from __future__ import annotations

from dataclasses import dataclass

from rudalle_lib.config.runtime import RuntimeConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.dataset.lease_files import LeaseMark
from rudalle_lib.pipeline.reuse import NOTHING, Reuse
from rudalle_lib.schema.records import ShardSpec
from rudalle_lib.storage.reading import ROWS, Reading
from rudalle_lib.storage.urls import Url


@dataclass(frozen=True)
class Job:
    """A shard to process.

    Attributes:
        shard: the planned shard.
        output: URL of the output folder.
        runtime: devices and precision.
        weights: where the weights are.
        lease: mark of the run's lease on the output. A run that no longer holds it must not
            publish.
        reading: rules for reading image prompts.
        signed: whole URLs of image prompts that only the process that read the table knows.
        batch_size: images per batch of the decoder, chosen for the whole run; None is what
            `generate.batch_size` says for the device that draws.
        reuse: what may be kept of runs that drew another number of images.
    """

    shard: ShardSpec
    output: str
    runtime: RuntimeConfig
    weights: WeightsConfig
    lease: LeaseMark | None = None
    reading: Reading = ROWS
    signed: tuple[Url, ...] = ()
    batch_size: int | None = None
    reuse: Reuse = NOTHING

    @property
    def term(self) -> int:
        """The term of the lease, which is part of the names of files."""
        return 0 if self.lease is None else self.lease.term
