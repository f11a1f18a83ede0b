"""Everything that can be known to be wrong before a run starts: seconds instead of a lost night."""

from __future__ import annotations

from rudalle_lib.config import RunConfig
from rudalle_lib.prompts import read_prompt_blocks
from rudalle_lib.stages import models, weight_digests
from rudalle_lib.storage import Storage


def check_inputs(config: RunConfig) -> None:
    """Check model names and the head of the prompt table; cheap, loads nothing heavy.

    Raises:
        ConfigError: a model that is unknown or of another kind.
        PromptError: a table that is no such table, or lacks the column of prompts.
        StorageError: a table that is not there.
    """
    models(config)
    next(read_prompt_blocks(config.prompts.uri, config.prompts.columns, 1), None)


def check_run(config: RunConfig) -> dict[str, str]:
    """Check all that a run needs, the cheapest first; nothing but a passing probe is written.

    Returns:
        The digest of the weights of every stage that has a model.

    Raises:
        SettingsError: a device or precision that this machine does not have.
        WeightsError: weights that cannot be had.
        StorageError: an output that cannot be written to.
        PromptError, ConfigError: as `check_inputs`.
    """
    from rudalle_lib.devices import resolve_devices, resolve_dtype  # imports torch

    check_inputs(config)
    for device in resolve_devices(config.runtime.devices):
        resolve_dtype(config.runtime.dtype, device)
    Storage(config.output).check_writable()
    return weight_digests(config)
