"""The configuration of a run: one frozen pydantic model, read from YAML, with a digest.

Every section is handed to the stage that it names; nothing below `tasks/` sees the whole. The same
model is the parameter of the Prefect flow, so the descriptions here are the help texts of its form.
The defaults are the demo stack. Secrets have no place here: they come from the environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, field_validator, model_validator

from rudalle_lib import registry
from rudalle_lib.config_cutout import CutoutConfig
from rudalle_lib.config_errors import error_from_validation
from rudalle_lib.config_publish import PublishConfig
from rudalle_lib.config_runtime import RuntimeConfig
from rudalle_lib.config_sections import (
    NOT_IDENTITY,
    Cpus,
    Gpus,
    PictureDtype,
    Positive,
    Section,
    Url,
)
from rudalle_lib.config_text import apply_overrides, parse_yaml
from rudalle_lib.digests import digest_of
from rudalle_lib.file_systems import read_text
from rudalle_lib.storage_errors import public_url

#: The prompt table that is shipped with the package.
DEMO_PROMPTS = "demo://prompts"

#: Settings that a row of the prompt table may override.
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

#: Pixels along one side of an image token, in every published VQ-GAN.
TOKEN_PIXELS = 8

#: The longest side of a canvas, in either unit.
MAX_SIDE = 8192


def _models(kind: registry.Kind) -> dict[str, Any]:
    """The choice that a form offers; what may be chosen is checked where models are looked up."""
    return {"enum": registry.names(kind)}


class PromptsConfig(Section):
    """Where the prompt table lies and how it is cut into shards."""

    uri: Url = Field(
        default=DEMO_PROMPTS,
        description="Prompt table: Parquet, CSV or JSONL at any path or fsspec URL; "
        f"{DEMO_PROMPTS} is the table shipped with the package.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column names of the table, by our name: prompt, prompt_id, lang, "
        f"{', '.join(OVERRIDE_NAMES)}. A name not given here stands for itself.",
    )
    shard_size: Positive = Field(default=64, description="Prompts per shard.")
    limit: Positive | None = Field(
        default=None, description="Read only this many rows of the table."
    )

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        known = ("prompt", "prompt_id", "lang", *OVERRIDE_NAMES)
        unknown = sorted(set(columns) - set(known))
        if unknown:
            raise ValueError(f"unknown name {unknown[0]!r}; the names are {', '.join(known)}")
        if len(set(columns.values())) < len(columns):
            raise ValueError("two names are mapped to the same column")
        return columns


class WeightsConfig(Section):
    """Where model weights come from."""

    folder: str | None = Field(
        default=None,
        description="Local folder with downloaded weights; looked into before the hub.",
    )
    offline: bool = Field(
        default=False, description="Never download; fail if a file is not at hand."
    )
    endpoint: Url | None = Field(
        default=None, description="Address of a mirror of the Hugging Face hub."
    )


class TranslateConfig(Section):
    """Translation of prompts into Russian, the language of the decoder."""

    model: str = Field(
        default="demo-marian",
        description="Translation model, by registry name, or opus-mt-xx-ru for another language.",
    )
    language: str = Field(
        default="auto",
        pattern=r"^(auto|[a-z]{2,3})$",
        description="Language of prompts whose row names none: ru, or the one that the model "
        "reads; auto tells them apart by the script, Cyrillic being Russian.",
    )
    batch_size: Positive = Field(
        default=32, description="Texts translated at once.", json_schema_extra=NOT_IDENTITY
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None


class GenerateConfig(Section):
    """Drawing image tokens with the decoder."""

    model: str = Field(
        default="demo-dalle",
        description="Decoder, by registry name.",
        json_schema_extra=_models("decoder"),
    )
    images: int = Field(default=8, ge=1, le=1000, description="Candidate images per prompt.")
    batch_size: Positive | Literal["auto"] = Field(
        default=64,
        description="Images drawn at once; auto is what fits into free memory, at most 256.",
        json_schema_extra=NOT_IDENTITY,
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Sampling temperature; lower is safer, higher is wilder.",
    )
    top_k: int = Field(
        default=2048, ge=0, description="Sample among the k likeliest tokens; 0 is all."
    )
    top_p: float = Field(
        default=0.995,
        gt=0,
        le=1,
        description="Sample among the likeliest tokens of this total mass.",
    )
    guidance: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="How far drawing is pushed away from what an empty text would give; 1 is off, "
        "anything else takes twice the time.",
    )
    width: int | None = Field(
        default=None,
        ge=1,
        le=MAX_SIDE,
        description="Width of the canvas in `size_unit`; null is the decoder's own. A larger one "
        "is drawn in overlapping windows.",
    )
    height: int | None = Field(
        default=None, ge=1, le=MAX_SIDE, description="Height of the canvas; as `width`."
    )
    size_unit: Literal["pixels", "tokens"] = Field(
        default="pixels",
        description=f"Unit of width and height: pixels before enlarging, {TOKEN_PIXELS} a token, "
        "or image tokens.",
    )
    image_encoder: Annotated[str, Field(json_schema_extra=_models("vqgan"))] | None = Field(
        default=None,
        description="VQ-GAN that reads image prompts, by registry name; null is decode.model.",
    )
    crop_image_prompts: bool = Field(
        default=False,
        description="Cut the borders out of an image prompt before it is encoded, so that the rest "
        "of the picture does not show in them.",
    )
    allow_truncation: bool = Field(
        default=True,
        description="Cut a text that is longer than the decoder reads, and record it; "
        "otherwise the prompt is rejected as too_long.",
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None

    @model_validator(mode="after")
    def _whole_tokens(self) -> Self:
        for name, size in (("width", self.width), ("height", self.height)):
            if self.size_unit == "pixels" and (size or 0) % TOKEN_PIXELS:
                raise ValueError(f"{name} in pixels is a multiple of {TOKEN_PIXELS}, found {size}")
        return self


class DecodeConfig(Section):
    """Turning image tokens into pixels with the VQ-GAN."""

    model: str = Field(
        default="demo-vqgan",
        description="VQ-GAN, by registry name.",
        json_schema_extra=_models("vqgan"),
    )
    dtype: PictureDtype = "float32"
    batch_size: Positive = Field(
        default=16, description="Images decoded at once.", json_schema_extra=NOT_IDENTITY
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None


class ScoreConfig(Section):
    """Scoring candidates against their prompt with ruCLIP, and keeping the good ones."""

    model: str = Field(
        default="demo-ruclip",
        description="Scorer, by registry name.",
        json_schema_extra=_models("scorer"),
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of the network; bfloat16 takes half the time where the processor "
        "knows it, and moves scores by about a thousandth.",
    )
    min_score: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Reject images with a lower cosine score; null keeps all.",
    )
    keep_best: Positive | None = Field(
        default=None, description="Keep this many best images per prompt; null keeps all."
    )
    batch_size: Positive = Field(
        default=64, description="Images scored at once.", json_schema_extra=NOT_IDENTITY
    )
    templates: tuple[str, ...] = Field(
        default=("{}",),
        min_length=1,
        description="Sentences around the prompt ({} stands for it) whose text features are "
        "averaged.",
    )
    negative_texts: tuple[str, ...] = Field(
        default=(),
        max_length=1000,
        description="Texts that the prompt is weighed against: with any, images also get the "
        "probability of their prompt among these.",
    )
    unsafe_texts: tuple[str, ...] = Field(
        default=(),
        max_length=1000,
        description="Texts about what no image may show, in Russian.",
    )
    max_unsafe: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Reject images whose cosine score with one of unsafe_texts is higher; null "
        "keeps all.",
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None

    @field_validator("templates")
    @classmethod
    def _one_place_each(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"a template holds {{}} exactly once, found {template!r}")
        return templates

    @model_validator(mode="after")
    def _something_to_compare_with(self) -> Self:
        if self.max_unsafe is not None and not self.unsafe_texts:
            raise ValueError("max_unsafe needs unsafe_texts, about what no image may show")
        return self


class UpscaleConfig(Section):
    """Enlarging the kept images with Real-ESRGAN."""

    model: Annotated[str, Field(json_schema_extra=_models("upscaler"))] | None = Field(
        default="demo-realesrgan-x2",
        description="Upscaler, by registry name; null leaves images as drawn.",
    )
    dtype: PictureDtype = "float32"
    batch_size: Positive = Field(
        default=8, description="Images enlarged at once.", json_schema_extra=NOT_IDENTITY
    )
    tile: int | None = Field(
        default=None,
        ge=16,
        description="Side of tiles in pixels for large images; null takes it whole.",
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None


class RunConfig(Section):
    """Everything that decides a run."""

    name: str = Field(default="run", min_length=1, max_length=100, description="Name of the run.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Seed of the run; with a prompt id it fixes every image.",
    )
    output: Url = Field(
        default="output", description="Folder or fsspec URL that the dataset is written to."
    )
    prompts: PromptsConfig = Field(default=PromptsConfig(), description="The prompt table.")
    weights: WeightsConfig = Field(default=WeightsConfig(), description="Where weights come from.")
    runtime: RuntimeConfig = Field(default=RuntimeConfig(), description="Devices and precision.")
    translate: TranslateConfig = Field(default=TranslateConfig(), description="Translation.")
    generate: GenerateConfig = Field(default=GenerateConfig(), description="The decoder.")
    decode: DecodeConfig = Field(default=DecodeConfig(), description="The VQ-GAN.")
    score: ScoreConfig = Field(default=ScoreConfig(), description="Scores and selection.")
    upscale: UpscaleConfig = Field(default=UpscaleConfig(), description="Super-resolution.")
    cutout: CutoutConfig = Field(default=CutoutConfig(), description="Transparent grounds.")
    publish: PublishConfig = Field(default=PublishConfig(), description="The dataset's form.")

    @model_validator(mode="after")
    def _say_how_many_devices(self) -> Self:
        runtime = self.runtime
        if runtime.runner == "ray" and runtime.split_decoder and (self.generate.gpus or 0) < 2:
            raise ValueError(
                "on Ray, runtime.split_decoder needs generate.gpus, the GPUs of one decoder: "
                f"expected 2 or more, found {self.generate.gpus}"
            )
        return self

    @model_validator(mode="after")
    def _choose_image_encoder(self) -> Self:
        if self.generate.image_encoder is None:  # the stage sees its own section alone
            chosen = self.generate.model_copy(update={"image_encoder": self.decode.model})
            object.__setattr__(self, "generate", chosen)
        return self

    @model_validator(mode="after")
    def _can_be_transparent(self) -> Self:
        if self.cutout.transparent and self.publish.image_format == "jpeg":
            raise ValueError("jpeg has no transparency; publish.image_format must be png or webp")
        return self

    def digest(self) -> str:
        """32 hex characters that two configurations share only if every setting is equal."""
        return digest_of(self.model_dump(mode="json"))

    def public_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values, without query strings of signed URLs."""
        data = self.model_dump(mode="json")
        data["output"] = public_url(self.output)
        data["prompts"]["uri"] = public_url(self.prompts.uri)
        return data

    @classmethod
    def load(cls, path_or_url: str, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, apply overrides such as `generate.images=4`, and check the result.

        Relative paths inside the file are relative to the working directory. Raises `ConfigError`
        (file missing, not YAML, unknown key, wrong value), in one sentence that names the key.
        """
        return cls.parse(read_text(path_or_url, what="run configuration"), overrides, path_or_url)

    @classmethod
    def parse(cls, text: str, overrides: Sequence[str] = (), source: str = "config") -> Self:
        """As `load`, from YAML text; `source` names it in errors."""
        data = apply_overrides(parse_yaml(text, source), overrides, cls)
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            raise error_from_validation(error, cls, source) from None
