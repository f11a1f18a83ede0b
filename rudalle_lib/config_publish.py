"""The section of a configuration that says what is published, and in which form."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from rudalle_lib.blocked_words import check_words
from rudalle_lib.config_sections import NOT_IDENTITY, Section


class PublishConfig(Section):
    """The form of the dataset that is written."""

    format: Literal["files", "webdataset", "parquet"] = Field(
        default="files",
        description="Form of the dataset: a file a picture; or all pictures of a shard in one tar, "
        "as WebDataset reads them, or in one table, as Hugging Face datasets does.",
    )
    image_format: Literal["png", "webp", "jpeg"] = Field(
        default="png", description="Image file format."
    )
    quality: int = Field(default=95, ge=1, le=100, description="Quality of webp and jpeg files.")
    blocked_words: tuple[str, ...] = Field(
        default=(),
        max_length=10_000,
        description="Words and phrases; what holds one, in the prompt or its translation, is not "
        "published, and a new prompt is not drawn. * at the end stands for any ending.",
    )
    gallery: bool = Field(
        default=True, description="Write a gallery page.", json_schema_extra=NOT_IDENTITY
    )
    contact_sheet: int = Field(
        default=64,
        ge=0,
        le=1000,
        description="Images on the contact sheet; 0 writes none.",
        json_schema_extra=NOT_IDENTITY,
    )
    metrics: bool = Field(
        default=False,
        description="Write the run's figures as metrics.prom, in Prometheus' text format.",
        json_schema_extra=NOT_IDENTITY,
    )

    @field_validator("blocked_words")
    @classmethod
    def _words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        check_words(words)
        return words
