"""What whole configurations share: they are read from YAML, and have a digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pydantic

from rudalle_lib.config.base import Section
from rudalle_lib.config.messages import error_from_validation
from rudalle_lib.config.overrides import apply_overrides, parse_yaml
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import ConfigError
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.filesystems import read_text


class Document(Section):
    """A configuration that is a file of its own."""

    elsewhere: ClassVar[dict[str, str]] = {}
    """Keys that only the configuration of another command has, with that command."""

    def digest(self) -> str:
        """A digest of all settings, as 32 hex characters."""
        return digest_of(self.digested())

    def public_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values; URLs are without secrets."""
        return self.model_dump(mode="json")

    @classmethod
    def load(cls, path_or_url: str, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, apply overrides, and validate the result.

        Args:
            path_or_url: the file. Relative paths in it are relative to the working directory.
            overrides: settings that replace those of the file, such as `generate.images=4`.

        Raises:
            ConfigError: the file is not YAML, is for another command, or has an unknown key or an
                invalid value; the message names the key.
            StorageError: the file cannot be read.
        """
        text = read_text(path_or_url, what="run configuration")
        return cls.parse(text, overrides, public_url(path_or_url))

    @classmethod
    def parse(cls, text: str, overrides: Sequence[str] = (), source: str = "config") -> Self:
        """Like `load`, from YAML text; `source` names it in error messages."""
        data = parse_yaml(text, source)
        for key in sorted(data.keys() & cls.elsewhere.keys()):
            raise ConfigError(
                f"{source} is for another command: `rudalle-flows {cls.elsewhere[key]}`. It has "
                f"the key {key}, which this command does not know."
            )
        data = apply_overrides(data, overrides, cls)
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            raise error_from_validation(error, cls, source) from None
