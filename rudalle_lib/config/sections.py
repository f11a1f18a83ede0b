"""The sections of a configuration, one per stage. A stage gets only its own section."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rudalle_lib.config.base import (
    NOT_IDENTITY,
    Cpus,
    Gpus,
    ImageDtype,
    Positive,
    Section,
    Url,
    model_choices,
    within,
)
from rudalle_lib.config.inputs import DEMO_PROMPTS as DEMO_PROMPTS
from rudalle_lib.config.inputs import OVERRIDE_NAMES as OVERRIDE_NAMES
from rudalle_lib.config.inputs import PromptsConfig as PromptsConfig
from rudalle_lib.config.inputs import WeightsConfig as WeightsConfig
from rudalle_lib.config.scoring import ScoreConfig as ScoreConfig
from rudalle_lib.schema.ranges import (
    GUIDANCE,
    IMAGES,
    INT32_MAX,
    SIDE,
    TEMPERATURE,
    TOP_K,
    TOP_P,
)
from rudalle_lib.text.blocked_words import check_words

TOKEN_PIXELS = 8
"""Pixels along one side of an image token, in every published VQ-GAN."""

SplitName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""The name of a split, which is a folder, too."""


class TranslateConfig(Section):
    """Translation of prompts into Russian, the language of the decoder."""

    model: str = Field(
        default="demo-marian",
        description="Translation model, by registry name; opus-mt-xx-ru for another language xx.",
    )
    language: str = Field(
        default="auto",
        pattern=r"^(auto|[a-z]{2,3})$",
        description="Language of prompts whose row does not specify one: a code such as ru or en. "
        "auto detects it by the script: Russian if it is Cyrillic, otherwise the language that "
        "the model translates from.",
    )
    batch_size: Positive = Field(
        default=32,
        description="Texts per batch, 1 or more.",
        json_schema_extra=NOT_IDENTITY,
    )
    min_confidence: float | None = Field(
        default=None,
        le=0,
        description="Do not draw prompts whose translation is less certain: mean log-probability "
        "of its tokens in nats, at most 0, such as -0.5. They are rejected as "
        "uncertain_translation. null draws all.",
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None

    added_later = ("min_confidence",)


class GenerateConfig(Section):
    """Generation of image tokens with the decoder, and how they are sampled."""

    model: str = Field(
        default="demo-dalle",
        description="Decoder, by registry name.",
        json_schema_extra=model_choices("decoder"),
    )
    images: Annotated[int, within(IMAGES)] = Field(
        default=8,
        description="Candidate images per prompt, from 1 to 1,000. More of them later draw only "
        "those that are missing.",
    )
    until_accepted: Positive | None = Field(
        default=None,
        description="Draw in rounds of `images` until so many images of a prompt are accepted: "
        "selected by `score`, before publishing. null draws one round for every prompt.",
    )
    max_images: Annotated[int, within(IMAGES)] = Field(
        default=64,
        description="Most candidate images per prompt when drawing in rounds, from 1 to 1,000. "
        "A prompt that has no more accepted images by then keeps those that it has. Used only with "
        "`until_accepted`.",
    )
    batch_size: Positive | Literal["auto"] = Field(
        default=64,
        description="Images per batch, 1 or more. auto is the number that fits into free memory: "
        "on a CPU at most 256, on several GPUs into that of each.",
        json_schema_extra=NOT_IDENTITY,
    )
    temperature: Annotated[float, within(TEMPERATURE)] = Field(
        default=1.0,
        description="Sampling temperature, above 0 and at most 100. Lower values give more "
        "predictable images, higher values more varied ones.",
    )
    top_k: Annotated[int, within(TOP_K)] = Field(
        default=2048,
        description="Sample only from the k most likely tokens; 0 is all tokens.",
    )
    top_p: Annotated[float, within(TOP_P)] = Field(
        default=0.995,
        description="Sample only from the most likely tokens whose probabilities add up to this "
        "value, above 0 and at most 1. 1 is all tokens.",
    )
    guidance: Annotated[float, within(GUIDANCE)] = Field(
        default=1.0,
        description="Scale of classifier-free guidance, from 0 to 100. Higher values follow the "
        "prompt more closely. 1 is off; any other value doubles the time.",
    )
    width: Annotated[int, within(SIDE)] | None = Field(
        default=None,
        description="Width of the image in `size_unit`; null is the native width of the decoder. "
        "A wider image is generated in overlapping windows.",
    )
    height: Annotated[int, within(SIDE)] | None = Field(
        default=None,
        description="Height of the image in `size_unit`; null is the native height of the "
        "decoder. A taller image is generated in overlapping windows.",
    )
    size_unit: Literal["pixels", "tokens"] = Field(
        default="pixels",
        description="Unit of `width` and `height`: pixels before upscaling, in multiples of "
        f"{TOKEN_PIXELS}, or image tokens of {TOKEN_PIXELS} x {TOKEN_PIXELS} pixels.",
    )
    image_encoder: Annotated[str, Field(json_schema_extra=model_choices("vqgan"))] | None = Field(
        default=None,
        description="VQ-GAN that encodes image prompts, by registry name; null is decode.model.",
    )
    crop_image_prompts: bool = Field(
        default=False,
        description="Crop an image prompt to its borders before encoding it, so that its tokens "
        "do not depend on the rest of the image.",
    )
    allow_truncation: bool = Field(
        default=True,
        description="Truncate prompts that are longer than the decoder can read, and record that "
        "in the column `truncated`. If off, they are rejected as too_long.",
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None

    added_later = ("until_accepted", "max_images")

    @model_validator(mode="after")
    def _check_whole_tokens(self) -> Self:
        for name, size in (("width", self.width), ("height", self.height)):
            if self.size_unit == "pixels" and (size or 0) % TOKEN_PIXELS:
                raise ValueError(f"{name} in pixels is a multiple of {TOKEN_PIXELS}, found {size}")
        return self

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        if self.until_accepted is not None and self.images > self.max_images:
            raise ValueError(
                "images, the size of a round, is at most max_images, "
                f"found {self.images:,} and {self.max_images:,}"
            )
        return self


class DecodeConfig(Section):
    """Decoding of image tokens into pixels with the decoder part of a VQ-GAN."""

    model: str = Field(
        default="demo-vqgan",
        description="VQ-GAN, by registry name.",
        json_schema_extra=model_choices("vqgan"),
    )
    dtype: ImageDtype = "float32"
    batch_size: Positive = Field(
        default=16,
        description="Images per batch, 1 or more.",
        json_schema_extra=NOT_IDENTITY,
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None


class UpscaleConfig(Section):
    """Upscaling of the kept images with Real-ESRGAN."""

    model: Annotated[str, Field(json_schema_extra=model_choices("upscaler"))] | None = Field(
        default="demo-realesrgan-x2",
        description="Upscaler, by registry name; null keeps images at their generated size.",
    )
    dtype: ImageDtype = "float32"
    batch_size: Positive = Field(
        default=8,
        description="Images per batch, 1 or more.",
        json_schema_extra=NOT_IDENTITY,
    )
    tile: int | None = Field(
        default=None,
        ge=16,
        le=INT32_MAX,
        description="Upscale large images in square tiles with sides of this many pixels, 16 or "
        "more, to save memory. null upscales whole images.",
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None


class CutoutConfig(Section):
    """Transparent backgrounds for published images, as stickers need them."""

    transparent: bool = Field(
        default=False,
        description="Publish images with a transparent background, as PNG or WebP.",
    )
    model: str | None = Field(
        default=None,
        description="Segmentation network that finds the background, by registry name. null finds "
        "it by the colour of the image's edge.",
    )
    min_confidence: float = Field(
        default=0.99,
        ge=0,
        le=1,
        description="Mean confidence over the pixels of an image, from 0 to 1, that the network "
        "must exceed. Otherwise the background is found by its colour.",
    )
    batch_size: Positive = Field(
        default=4,
        description="Images per batch, 1 or more.",
        json_schema_extra=NOT_IDENTITY,
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None


class PublishConfig(Section):
    """The format of the published dataset, and the parts of its report."""

    format: Literal["files", "webdataset", "parquet"] = Field(
        default="files",
        description="Format of the dataset. files: one file per image. webdataset: one tar file "
        "per shard. parquet: one table per shard, as Hugging Face datasets reads it.",
    )
    image_format: Literal["png", "webp", "jpeg"] = Field(
        default="png", description="Format of the image files."
    )
    quality: int = Field(
        default=95, ge=1, le=100, description="Quality of WebP and JPEG files, from 1 to 100."
    )
    provenance: bool = Field(
        default=True,
        description="Write into each image file, as XMP, that a model made it (IPTC "
        "digitalSourceType), which model, of which prompt, with which seed, and its image_id.",
    )
    splits: dict[SplitName, Annotated[float, Field(gt=0, le=1)]] | None = Field(
        default=None,
        max_length=20,
        description="Splits of the dataset with their shares, such as {train: 0.95, validation: "
        "0.05}. A hash of the text decides, so all images of a prompt are in one split, and a "
        "growing dataset never moves one. The column `split` names it. null makes no splits.",
    )
    embeddings: bool = Field(
        default=True,
        description="Publish the column `embedding`, if `score.embeddings` computes it.",
    )
    tokens: bool = Field(
        default=False,
        description="Publish the image tokens of each image: the columns `tokens`, row by row, and "
        "`token_columns`, tokens per row.",
    )
    rows_per_file: Positive | None = Field(
        default=None,
        description="Images per data file, however small shards are: the report merges those of "
        "several shards into files in data/merged, which the dataset card names. webdataset and "
        "parquet only. null leaves one file per shard.",
        json_schema_extra=NOT_IDENTITY,
    )
    blocked_words: tuple[str, ...] = Field(
        default=(),
        max_length=10_000,
        description="Words and phrases, at most 10,000. A prompt that contains one, itself or in "
        "translation, is not published; a new prompt is not generated either. * at the end of a "
        "word matches any ending.",
    )
    gallery: bool = Field(
        default=True,
        description="Write the gallery page, gallery/index.html.",
        json_schema_extra=NOT_IDENTITY,
    )
    contact_sheet: int = Field(
        default=64,
        ge=0,
        le=1000,
        description="Images on the contact sheet, from 0 to 1,000; 0 writes none.",
        json_schema_extra=NOT_IDENTITY,
    )
    yield_by: str | None = Field(
        default=None,
        description="Column of the prompt table, such as a category, by whose values the report "
        "counts the images drawn and published. null counts no groups.",
        json_schema_extra=NOT_IDENTITY,
    )
    metrics: bool = Field(
        default=False,
        description="Write the metrics of the run to metrics.prom, in Prometheus text format.",
        json_schema_extra=NOT_IDENTITY,
    )
    compare_with: Url | None = Field(
        default=None,
        description="An earlier output, or a pattern for several, such as s3://bucket/daily-*, of "
        "which the last one is taken that finished before. The run ends with a Prefect artifact "
        "that says what differs; see `rudalle-flows compare`. Needs the extra `compare`.",
        json_schema_extra=NOT_IDENTITY,
    )

    added_later = (
        *("splits", "provenance", "compare_with", "embeddings", "tokens", "rows_per_file"),
        "yield_by",
    )

    @field_validator("splits")
    @classmethod
    def _check_splits(cls, splits: dict[str, float] | None) -> dict[str, float] | None:
        if splits is not None and abs(sum(splits.values()) - 1) > 1e-6:
            raise ValueError(f"the shares add up to 1, found {sum(splits.values()):g}")
        return splits

    @model_validator(mode="after")
    def _check_rows_per_file(self) -> Self:
        if self.rows_per_file is not None and self.format == "files":
            raise ValueError(
                "rows_per_file needs format webdataset or parquet; with files, each image is a file"
            )
        return self

    @field_validator("blocked_words")
    @classmethod
    def _check_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        check_words(words)
        return words
