"""The configuration of a run: one frozen pydantic model, read from YAML, with a digest.

Each section is passed to the stage of the same name. The model is also the parameter of the
Prefect flow, so the descriptions of its fields are the help texts of Prefect's form. The defaults
are the demo models. Secrets do not belong here: they come from the environment.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from rudalle_lib.config.base import Section, Url, within
from rudalle_lib.config.document import Document
from rudalle_lib.config.precision import SECTIONS, choose_precisions
from rudalle_lib.config.runtime import RuntimeConfig
from rudalle_lib.config.sections import (
    CutoutConfig,
    DecodeConfig,
    GenerateConfig,
    PromptsConfig,
    PublishConfig,
    ScoreConfig,
    TranslateConfig,
    UpscaleConfig,
    WeightsConfig,
)
from rudalle_lib.config.selection import SelectConfig
from rudalle_lib.schema.ranges import SEED


class RunConfig(Document):
    """All settings of a run."""

    added_later = ("select",)
    elsewhere = dict.fromkeys(("data", "encoding", "trains", "training"), "fine-tune")

    name: str = Field(
        default="run",
        min_length=1,
        max_length=100,
        description="Name of the run, at most 100 characters; it appears in its report.",
    )
    seed: Annotated[int, within(SEED)] = Field(
        default=0,
        description="Seed of the run, 0 or more. Together with the id of a prompt and the number "
        "of a candidate it determines an image.",
    )
    output: Url = Field(
        default="output",
        description="Folder or URL that the dataset is written to, for example "
        "s3://bucket/folder. Running again with the same output resumes the run.",
    )
    prompts: PromptsConfig = Field(default=PromptsConfig(), description="The prompt table.")
    weights: WeightsConfig = Field(default=WeightsConfig(), description="Where weights come from.")
    runtime: RuntimeConfig = Field(
        default=RuntimeConfig(), description="Devices, precision and concurrency."
    )
    translate: TranslateConfig = Field(
        default=TranslateConfig(), description="Translation of prompts into Russian."
    )
    generate: GenerateConfig = Field(
        default=GenerateConfig(), description="Generation of image tokens with the decoder."
    )
    decode: DecodeConfig = Field(
        default=DecodeConfig(), description="Decoding of image tokens into pixels with the VQ-GAN."
    )
    score: ScoreConfig = Field(
        default=ScoreConfig(), description="Scoring and selection of images."
    )
    select: SelectConfig = Field(
        default=SelectConfig(), description="Rules by which images are selected after scoring."
    )
    upscale: UpscaleConfig = Field(
        default=UpscaleConfig(), description="Upscaling of the kept images."
    )
    cutout: CutoutConfig = Field(default=CutoutConfig(), description="Transparent backgrounds.")
    publish: PublishConfig = Field(
        default=PublishConfig(), description="The format of the published dataset."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_image_encoder(cls, data: Any) -> Any:
        """Set `generate.image_encoder` to `decode.model` if it is missing.

        A stage sees only its own section, so the name has to be in `generate`. Invalid sections
        are left for the validation that follows.
        """
        if not isinstance(data, dict):
            return data
        generate, decode = (_as_section(data.get(name, {})) for name in ("generate", "decode"))
        if generate is None or decode is None or generate.get("image_encoder") is not None:
            return data
        encoder = decode.get("model", DecodeConfig.model_fields["model"].default)
        if not isinstance(encoder, str):
            return data
        return {**data, "generate": {**generate, "image_encoder": encoder}}

    @model_validator(mode="before")
    @classmethod
    def _choose_precisions(cls, data: Any) -> Any:
        """Replace every `dtype: auto` by the precision of the output, or for this machine."""
        if not isinstance(data, dict):
            return data
        sections = {name: _as_section(data.get(name)) for name in SECTIONS}
        output = data.get("output", cls.model_fields["output"].default)
        chosen = choose_precisions(sections, output if isinstance(output, str) else None)
        return data | {
            name: {**(sections[name] or {}), "dtype": dtype} for name, dtype in chosen.items()
        }

    @model_validator(mode="after")
    def _check_split_on_ray(self) -> Self:
        runtime = self.runtime
        if runtime.runner == "ray" and runtime.split_decoder and (self.generate.gpus or 0) < 2:
            raise ValueError(
                "on Ray, runtime.split_decoder needs generate.gpus, the GPUs of one decoder: "
                f"expected 2 or more, found {self.generate.gpus}"
            )
        return self

    @model_validator(mode="after")
    def _check_accepted(self) -> Self:
        enough, most = self.generate.until_accepted, self.score.keep_best
        if enough is not None and most is not None and enough > most:
            raise ValueError(
                "score.keep_best accepts fewer images than generate.until_accepted asks for: "
                f"expected {enough:,} or more, found {most:,}"
            )
        return self

    @model_validator(mode="after")
    def _check_transparency(self) -> Self:
        if self.cutout.transparent and self.publish.image_format == "jpeg":
            raise ValueError("jpeg has no transparency; publish.image_format must be png or webp")
        return self

    @model_validator(mode="after")
    def _check_likeness(self) -> Self:
        for number, rule in enumerate(self.select.rules):
            for key, needed in (("min_distance", "embeddings"), ("min_hash_distance", "hashes")):
                if getattr(rule, key) is not None and not getattr(self.score, needed):
                    raise ValueError(
                        f"select.rules.{number}: {key} needs score.{needed}: true, to compare them"
                    )
        return self

    def precisions(self) -> dict[str, str]:
        """The precision of every section that has one."""
        return {name: getattr(self, name).dtype for name in SECTIONS}


def _as_section(value: Any) -> dict[str, Any] | None:
    """The settings of a section as a dictionary, None if the value is not a section."""
    if isinstance(value, Section):
        return {name: getattr(value, name) for name in type(value).model_fields}
    return value if isinstance(value, dict) else None
