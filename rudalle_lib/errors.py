"""The errors that callers of the library may catch.

Every message says what was expected, what was found, where, and what to do about it, so that a
command line can show it to its user as it is.
"""


class RudalleError(Exception):
    """Anything that this library raises on purpose."""


class ConfigError(RudalleError):
    """A run configuration, or a name in it, that cannot be used."""


class SettingsError(ConfigError):
    """A single setting (sampling, device, dtype ...) outside the values it may take."""


class PromptError(RudalleError):
    """A prompt table that cannot be read as one; a single bad row is a reject, not an error."""


class WeightsError(RudalleError):
    """Weights that cannot be found, read safely, or matched with the network they are meant for."""


class StorageError(RudalleError):
    """An object store or folder that refused to be read or written."""


class TransientError(StorageError):
    """A storage error that may pass by itself: no answer, a broken connection, "slow down"."""


class DamagedError(StorageError):
    """A file that is there, but is not what was written: changed, cut, or another one."""


class LeaseError(RudalleError):
    """An output that another run writes to."""


class LeaseLostError(LeaseError):
    """A run that has lost its output to another one, or has ended, and must not write any more."""


class StoppedError(RudalleError):
    """Work that was dropped because its run was asked to stop."""


class ShardError(RudalleError):
    """A shard, or one of its stage artifacts, that is missing or not what it should be."""


class OutOfMemoryError(RudalleError):
    """Work that does not fit into the memory of the device or machine, however small its parts."""


class ImageError(RudalleError):
    """Bytes that are not a picture of an accepted format, or a picture larger than allowed."""
