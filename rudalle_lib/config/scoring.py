"""Settings of the score stage: the scorer, what else is measured, and which images are kept."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rudalle_lib.config.base import NOT_IDENTITY, Cpus, Gpus, Positive, Section, model_choices

Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
"""One or more texts."""

ProbeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""The name of a probe, which is part of a column's name, too."""

MeasureName = ProbeName
"""The name of a probe, or `SECOND`."""

SECOND = "second"
"""The name of the second scorer among measures."""

PRESETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "nsfw": (
            "непристойное изображение, обнажённое тело, порнография",
            "приличное изображение, которое можно показать детям",
        ),
        "violence": (
            "изображение насилия, кровь, раны, труп",
            "мирное изображение, которое можно показать детям",
        ),
        "aesthetic": (
            "красивая картина, высокое качество",
            "уродливая картина, низкое качество",
        ),
        "text": (
            "изображение с надписью, буквы и слова",
            "изображение без надписей",
        ),
    }
)
"""Probes that are shipped, by name: texts of which the first names what is measured."""


class ScoreConfig(Section):
    """Scoring of candidates against their prompt with ruCLIP, and selection of the best."""

    model: str = Field(
        default="demo-ruclip",
        description="Scorer, by registry name.",
        json_schema_extra=model_choices("scorer"),
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of the network. bfloat16 takes half the time on CPUs with native "
        "bfloat16, and changes scores by about 0.001. auto: bfloat16 on processors that multiply "
        "it themselves, else float32.",
    )
    min_score: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Reject images whose score, the cosine similarity of prompt and image from "
        "-1 to 1, is lower. null keeps all.",
    )
    keep_best: Positive | None = Field(
        default=None,
        description="Keep this many images per prompt, the best by score; null keeps all.",
    )
    batch_size: Positive = Field(
        default=64,
        description="Images per batch, 1 or more.",
        json_schema_extra=NOT_IDENTITY,
    )
    templates: tuple[str, ...] = Field(
        default=("{}",),
        min_length=1,
        description="Sentences that the prompt is inserted into, in place of {}. Their text "
        "features are averaged.",
    )
    negative_texts: tuple[str, ...] = Field(
        default=(),
        max_length=1000,
        description="Texts that compete with the prompt, at most 1,000. If there are any, the "
        "column `probability` gives the probability of the prompt among them.",
    )
    unsafe_texts: tuple[str, ...] = Field(
        default=(),
        max_length=1000,
        description="Descriptions of unwanted content in Russian, at most 1,000. The column "
        "`unsafe` gives the highest similarity of an image to any of them.",
    )
    max_unsafe: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Reject images whose cosine similarity to one of `unsafe_texts`, from -1 to "
        "1, is higher. null keeps all.",
    )
    embeddings: bool = Field(
        default=False,
        description="Keep ruCLIP's features of each image: the column `embedding`, float16, of "
        "unit length. Near-duplicates are found by them.",
    )
    hashes: bool = Field(
        default=False,
        description="Keep a perceptual hash of each image, the column `phash`: 64 bits that differ "
        "little between images that look alike. Needs the extra `duplicates`.",
    )
    probes: dict[ProbeName, Literal["preset"] | Texts] = Field(
        default={},
        max_length=100,
        description="Measures of images by texts, at most 100, such as {aesthetic: [красивая "
        "картина, уродливая картина]}. The column `probe_<name>` is the probability of the first "
        "text against the others, or the cosine similarity if there is one text. `preset` takes "
        "texts that are shipped: " + ", ".join(PRESETS) + ".",
    )
    minimum: dict[MeasureName, float] = Field(
        default={},
        max_length=101,
        description="Reject images with a lower value of a probe, such as {aesthetic: 0.5}; "
        "`second` is the score of `second_model`.",
    )
    maximum: dict[MeasureName, float] = Field(
        default={},
        max_length=101,
        description="Reject images with a higher value of a probe, such as {nsfw: 0.5}; `second` "
        "is the score of `second_model`.",
    )
    min_distance: float | None = Field(
        default=None,
        gt=0,
        le=2,
        description="Reject an image that is like a better one of its prompt: cosine distance of "
        "their `embeddings`, from 0 to 2, such as 0.05. The next best image moves up.",
    )
    min_hash_distance: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="The same by the bits of 64 in which their `hashes` differ, such as 6.",
    )
    second_model: str | None = Field(
        default=None,
        description="A second scorer beside the first: a ruCLIP by registry name, or open_clip: "
        "with a repository of the hub, such as open_clip:laion/CLIP-ViT-B-32-laion2B-s34B-b79K. "
        "Its column is `second_score`; it rejects nothing unless `minimum` or `maximum` name it.",
    )
    second_text: Literal["auto", "russian", "original"] = Field(
        default="auto",
        description="What the second scorer compares images with: the prompt in Russian, or as it "
        "was given. auto: as given for open_clip, in Russian for a ruCLIP.",
    )
    compare_translations: bool = Field(
        default=False,
        description="Compare each translated prompt with its translation by ruCLIP's features of "
        "both texts: the column `translation_similarity`.",
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None

    added_later = (
        "embeddings",
        "hashes",
        "probes",
        "minimum",
        "maximum",
        "min_distance",
        "min_hash_distance",
        "second_model",
        "second_text",
        "compare_translations",
    )

    def probe_texts(self) -> dict[str, Texts]:
        """The texts of each probe, in order of name."""
        given = sorted(self.probes.items())
        return {name: PRESETS[name] if texts == "preset" else texts for name, texts in given}

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"a template holds {{}} exactly once, found {template!r}")
        return templates

    @field_validator("probes")
    @classmethod
    def _check_probes(
        cls, probes: dict[str, Literal["preset"] | Texts]
    ) -> dict[str, Literal["preset"] | Texts]:
        for name, texts in probes.items():
            if name == SECOND:
                raise ValueError(f"{SECOND!r} is the name of the second scorer; choose another")
            if texts == "preset" and name not in PRESETS:
                raise ValueError(
                    f"there is no preset {name!r}; known are {', '.join(PRESETS)}; or give texts"
                )
        return probes

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        known = [*self.probes, *([] if self.second_model is None else [SECOND])]
        for key, limits in (("minimum", self.minimum), ("maximum", self.maximum)):
            for name in limits.keys() - known:
                what = "score.second_model" if name == SECOND else "such a probe in score.probes"
                found = ", ".join(known) or "none"
                raise ValueError(f"{key}.{name} needs {what}; there are {found}")
        return self

    @model_validator(mode="after")
    def _check_likeness(self) -> Self:
        if self.min_distance is not None and not self.embeddings:
            raise ValueError("min_distance needs embeddings: true, which it compares")
        if self.min_hash_distance is not None and not self.hashes:
            raise ValueError("min_hash_distance needs hashes: true, which it compares")
        return self

    @model_validator(mode="after")
    def _check_unsafe_texts(self) -> Self:
        if self.max_unsafe is not None and not self.unsafe_texts:
            raise ValueError("max_unsafe needs unsafe_texts, the unwanted content to compare with")
        return self
