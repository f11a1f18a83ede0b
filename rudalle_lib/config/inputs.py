"""The sections of what a run reads: its prompt table and its weights."""

from __future__ import annotations

import codecs
from typing import Annotated

from pydantic import Field, field_validator

from rudalle_lib.config.base import LocalFolder, Positive, Section, TableUrl, WebUrl
from rudalle_lib.storage.reading import Reading

DEMO_PROMPTS = "demo://prompts"
"""The prompt table that is shipped with the package."""

OVERRIDE_NAMES = (
    "images",
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "guidance",
    "width",
    "height",
    "image_prompt",
    "image_prompt_borders",
)
"""Settings that a row of the prompt table may override."""

NAMED_DELIMITERS = {"\\t": "\t", "tab": "\t", "comma": ",", "semicolon": ";"}
"""Other spellings of delimiters."""

NO_FILE_ENCODINGS = (
    "idna",
    "punycode",
    "raw-unicode-escape",
    "unicode-escape",
    "undefined",
    "utf-7",
)
"""Encodings that Python knows and no table has."""

MAX_SECONDS = 24 * 3600
"""The longest time limit of a read: a day."""

Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
"""How long something may take."""


class PromptsConfig(Section):
    """The prompt table, and how it is divided into shards."""

    added_later = (
        "delimiter",
        "encoding",
        "allow_private_hosts",
        "connect_seconds",
        "read_seconds",
        "total_seconds",
    )

    uri: TableUrl = Field(
        default=DEMO_PROMPTS,
        description="Prompt table: a Parquet, CSV, JSONL or JSON file at any path or URL, "
        "also compressed as .gz or .zst, a folder of such files, or a pattern such as "
        f"data/*.parquet. {DEMO_PROMPTS} is the table shipped with the package.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Names of the table's columns, if they differ from ours: for example "
        "{prompt: caption}. Our names are prompt, prompt_id, lang, "
        f"{', '.join(OVERRIDE_NAMES)}. Other columns are passed through to the dataset.",
    )
    delimiter: str | None = Field(
        default=None,
        description="Character between the values of a CSV table, such as ';' or \"\\t\"; null "
        "recognises commas, semicolons, tabs and vertical bars by the header.",
    )
    encoding: str | None = Field(
        default=None,
        description="Encoding of a CSV or JSON table, such as cp1251; null recognises UTF-8, "
        "UTF-16 and Windows-1251.",
    )
    shard_size: Positive = Field(
        default=64, description="Prompts per shard, 1 or more. A shard is the unit of work."
    )
    limit: Positive | None = Field(
        default=None, description="Read only the first rows of the table; null reads all."
    )
    allow_private_hosts: bool = Field(
        default=False,
        description="Allow rows to name image prompts on web servers in private networks and on "
        "this machine. Only for tables that you trust.",
    )
    connect_seconds: Seconds = Field(
        default=10.0,
        description="The most seconds for connecting to the server of a table or image prompt.",
    )
    read_seconds: Seconds = Field(
        default=30.0,
        description="The most seconds between two parts of the answer of such a server.",
    )
    total_seconds: Seconds = Field(
        default=120.0,
        description="The most seconds for an image prompt, or for 8 MiB of a table. A row whose "
        "image prompt takes longer is rejected.",
    )

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, delimiter: str | None) -> str | None:
        named = NAMED_DELIMITERS.get(delimiter or "", delimiter)
        if named is not None and (len(named) != 1 or named in '\r\n" '):
            raise ValueError(
                f"expected one character such as ',', ';', '|' or \"\\t\", found {delimiter!r}"
            )
        return named

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        if encoding is None:
            return None
        try:
            found = codecs.lookup(encoding)
        except (LookupError, ValueError):
            found = None
        is_text = found is not None and getattr(found, "_is_text_encoding", False)
        if found is None or not is_text or found.name in NO_FILE_ENCODINGS:
            raise ValueError(
                f"unknown encoding {encoding[:40]!r}; expected for example utf-8, utf-16, cp1251, "
                "koi8-r or latin-1"
            )
        return encoding

    def reading(self, rows: bool = False) -> Reading:
        """The rules for reading the table, or what its rows name."""
        return Reading(
            connect_seconds=self.connect_seconds,
            read_seconds=self.read_seconds,
            total_seconds=self.total_seconds,
            private_hosts=self.allow_private_hosts or not rows,
        )

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        known = ("prompt", "prompt_id", "lang", *OVERRIDE_NAMES)
        unknown = sorted(set(columns) - set(known))
        if unknown:
            raise ValueError(f"unknown name {unknown[0]!r}; the names are {', '.join(known)}")
        if len(set(columns.values())) < len(columns):
            raise ValueError("two names are mapped to the same column")
        return columns


class WeightsConfig(Section):
    """Where model weights come from."""

    folder: LocalFolder | None = Field(
        default=None,
        description="Local folder with downloaded weights, which is searched before the Hugging "
        "Face Hub. Files are in subfolders named after their repositories.",
    )
    offline: bool = Field(
        default=False,
        description="Never download weights; fail if a file is not on this machine.",
    )
    endpoint: WebUrl | None = Field(
        default=None,
        description="URL of a mirror of the Hugging Face Hub; null is the Hub itself. It never "
        "gets your HF_TOKEN; a mirror in HF_ENDPOINT does.",
    )
