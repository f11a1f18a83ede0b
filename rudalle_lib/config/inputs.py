"""The sections of what is read: a prompt table, datasets to learn from, weights."""

from __future__ import annotations

import codecs
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from rudalle_lib import registry
from rudalle_lib.config.base import LocalFolder, Positive, Section, TableUrl, Url, WebUrl
from rudalle_lib.errors import ConfigError
from rudalle_lib.registry import Kind, ModelEntry
from rudalle_lib.storage.reading import Reading
from rudalle_lib.storage.urls import WEB, scheme_of

DEMO_PROMPTS = "demo://prompts"
"""The prompt table that is shipped with the package."""

SHARD_SIZE = 64
"""Prompts per shard that are the default, and the most of `auto` on a CPU."""

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


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise ValueError(
            "expected a name of small letters, digits, dots, dashes and underscores, "
            f"found {name[:80]!r}"
        )
    return name


ModelName = Annotated[str, AfterValidator(_check_name)]
"""A name under which a configuration refers to weights of one's own."""


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
    shard_size: Positive | Literal["auto"] = Field(
        default=SHARD_SIZE,
        description="Prompts per shard, 1 or more. A shard is the unit of work. auto is a full "
        "batch of the decoder on GPUs, and 512 images, at most 64 prompts, on a CPU; it is chosen "
        "when the first prompts of an output are planned, and later ones keep it.",
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


class SourceConfig(Section):
    """One dataset to learn from."""

    uri: Url = Field(
        description="A dataset that rudalle-flows made, in any of its forms; a Hugging Face image "
        "dataset; a folder of images with captions in a text file each or in a metadata file; or a "
        "table with the path or URL of each image. A local path or a URL, for example "
        "s3://bucket/dataset."
    )
    caption: str | None = Field(
        default=None,
        description="Column of the captions; null finds text_ru, text, caption or prompt.",
    )
    image: str | None = Field(
        default=None,
        description="Column of the images, or of their paths; null finds it.",
    )
    limit: Positive | None = Field(
        default=None,
        description="Read only the first rows, those that cannot be used included; null reads all.",
    )
    split: str | None = Field(
        default=None,
        description="Split to read, such as train. null leaves out the splits for validation and "
        "test if there is another one.",
    )
    repeats: Positive = Field(
        default=1,
        description="How often each of its images is seen for every time that an image of a "
        "dataset with 1 is seen.",
    )
    allow_private_hosts: bool = Field(
        default=False,
        description="Allow rows to name images on web servers in private networks and on this "
        "machine. Only for tables that you trust.",
    )
    connect_seconds: Seconds = Field(
        default=10.0, description="The most seconds for connecting to the server of an image."
    )
    read_seconds: Seconds = Field(
        default=30.0, description="The most seconds between two parts of its answer."
    )
    total_seconds: Seconds = Field(
        default=120.0,
        description="The most seconds for one image. One that takes longer is left out.",
    )

    def reading(self, rows: bool = False) -> Reading:
        """The rules for reading the files of the dataset, or what its rows name."""
        return Reading(
            connect_seconds=self.connect_seconds,
            read_seconds=self.read_seconds,
            total_seconds=self.total_seconds,
            private_hosts=self.allow_private_hosts or not rows,
        )


class NamedWeights(Section):
    """Weights of one's own, such as fine-tuned ones."""

    base: str = Field(
        description="The registered model whose network they have: the one that was fine-tuned."
    )
    folder: Url = Field(
        description="Folder with model.safetensors, config.json and the files of the tokenizer: "
        "a local one, or a URL such as s3://bucket/weights/mine."
    )

    @field_validator("base")
    @classmethod
    def _check_base(cls, base: str) -> str:
        try:
            registry.get(base)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return base

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, folder: str) -> str:
        if scheme_of(folder) in WEB:
            raise ValueError(
                "expected a local folder or a URL of object storage, such as s3://bucket/weights"
            )
        return folder


class WeightsConfig(Section):
    """Where model weights come from."""

    added_later = ("models",)

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
    models: dict[ModelName, NamedWeights] = Field(
        default_factory=dict,
        description="Weights of your own by name, such as fine-tuned ones: for example "
        "{mine: {base: malevich-v3, folder: output/fine-tuned/weights/mine}}. Such a name can be "
        "used wherever a model is named.",
    )

    @field_validator("models")
    @classmethod
    def _check_models(cls, models: dict[str, NamedWeights]) -> dict[str, NamedWeights]:
        for name in models:
            if registry.is_registered(name):
                raise ValueError(
                    f"{name} is the name of a registered model, which it would hide; choose "
                    "another name"
                )
        return models

    def __hash__(self) -> int:
        """Equal ones have equal hashes; loaded models are remembered by them."""
        return hash((self.folder, self.offline, self.endpoint, tuple(self.models)))

    def own(self) -> dict[str, ModelEntry]:
        """The entries of `models` by name."""
        return {
            name: registry.from_folder(name, one.base, one.folder)
            for name, one in self.models.items()
        }

    def find(self, name: str, kind: Kind | None = None) -> ModelEntry:
        """Find a model by a registered name or one in `models`.

        Raises:
            ConfigError: there is no such model, or it is of another kind; lists the known names.
        """
        return registry.get(name, kind, self.own())

    def find_second_scorer(self, name: str) -> ModelEntry:
        """As `find`, for `score.second_model`."""
        return registry.second_scorer(name, self.own())
