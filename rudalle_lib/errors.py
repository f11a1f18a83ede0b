"""The errors that callers of the library may catch.

Every message says what was expected, what was found, where, and what to do about it, so a command
line can show it unchanged.
"""

from __future__ import annotations

from rudalle_lib.escaping import safe_text


class RudalleError(Exception):
    """Base class of all errors that this library raises on purpose.

    Messages contain names and values of strangers, and are shown in terminals, logs and databases.
    So this class shows control characters in them as escapes.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(safe_text(a) if isinstance(a, str) else a for a in arguments))


class ConfigError(RudalleError):
    """A run configuration, or a value in it, is not valid."""


class SettingsError(ConfigError):
    """The value of a single setting (sampling, device, dtype ...) is not valid."""


class PromptError(RudalleError):
    """A prompt table cannot be read. A single bad row is a reject, not an error."""


class DataError(RudalleError):
    """A dataset to learn from cannot be read. A single bad row is a reject, not an error."""


class WeightsError(RudalleError):
    """Weights cannot be found, cannot be read safely, or do not fit their network."""


class StorageError(RudalleError):
    """A folder or object store cannot be read or written."""


class TransientError(StorageError):
    """A storage error that may disappear by itself: no answer, a closed connection, throttling."""


class DamagedError(StorageError):
    """A file exists, but its content is not what was written: changed, truncated or replaced."""


class TornError(DamagedError):
    """A file that was never written to its end, as after a power cut: it is empty or cut off."""


class LeaseError(RudalleError):
    """Another run is writing to the output."""


class LeaseLostError(LeaseError):
    """The run has lost its lease to another run, or has ended, and must not write any more."""


class StoppedError(RudalleError):
    """Work was abandoned because its run was asked to stop."""


class ShardError(RudalleError):
    """A shard or one of its stage artifacts is missing or not valid."""


class OutOfMemoryError(RudalleError):
    """A single item does not fit into the memory of the device or machine."""


class ImageError(RudalleError):
    """Bytes are not an image in a supported format, or the image is larger than allowed."""


class TrainingError(RudalleError):
    """A training cannot go on: its loss is not finite, or one of its processes has died."""
