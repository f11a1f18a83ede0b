"""What sections of a configuration have in common: strictness, identity, URLs, resources."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

#: Marks a field that steers how fast or how verbosely a stage works, but not what it makes.
NOT_IDENTITY: dict[str, Any] = {"identity": False}

Positive = Annotated[int, Field(ge=1)]


def _without_credentials(url: str) -> str:
    if not url.strip():
        raise ValueError("expected a folder or URL, found an empty text")
    if "://" in url and "@" in urlsplit(url).netloc:
        raise ValueError(
            "a URL must not carry a user name or password; give credentials in the environment, "
            "for S3 as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return url


Url = Annotated[str, AfterValidator(_without_credentials)]


def _a_part_or_whole_ones(gpus: float | None) -> float | None:
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise ValueError(f"more than one GPU is a whole number of them, found {gpus}")
    return gpus


PictureDtype = Annotated[
    Literal["float32", "bfloat16"],
    Field(
        description="Precision of the network; bfloat16 takes half the time where the processor "
        "knows it, and no eye tells the pictures apart."
    ),
]

Cpus = Annotated[
    float,
    Field(
        gt=0,
        description="With runner ray: CPUs that one task of this stage takes.",
        json_schema_extra=NOT_IDENTITY,
    ),
]

Gpus = Annotated[
    float | None,
    Field(
        ge=0,
        description="With runner ray: GPUs that one task of this stage takes, or the part of one "
        "that it shares; null is one where there are GPUs.",
        json_schema_extra=NOT_IDENTITY,
    ),
    AfterValidator(_a_part_or_whole_ones),
]


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a URL with a password must not get into a log
    )

    def identity(self, exclude: Iterable[str] = ()) -> dict[str, Any]:
        """The settings that decide what a stage makes, as plain JSON values.

        Fields such as `batch_size` are left out: images do not depend on them, so changing one must
        not throw finished work away. `exclude` names further fields that the stage does not use.
        """
        left_out = set(exclude)
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == NOT_IDENTITY:
                left_out.add(name)
        return self.model_dump(mode="json", exclude=left_out)
