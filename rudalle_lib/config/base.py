"""What the sections of a configuration share: strictness, identity, URLs, ranges and resources."""

from __future__ import annotations

import os
import reprlib
import types
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
)

from rudalle_lib import registry
from rudalle_lib.schema.ranges import INT32_MAX, Range
from rudalle_lib.storage import urls

NOT_IDENTITY: dict[str, Any] = {"identity": False}
"""Marks a field that changes how fast a stage works or what it reports, but not its output."""

MAX_CPUS = 4096
"""The most CPUs or threads that a setting may ask for."""

MAX_GPUS = 1024
"""The most GPUs that one task may ask for."""

Positive = Annotated[int, Field(ge=1, le=INT32_MAX)]
"""A count of at least 1 that fits an int32 column and a C `int`."""

CpuCount = Annotated[int, Field(ge=1, le=MAX_CPUS)]
"""A number of CPUs or threads."""


OWN_NAME = "of your own"
"""Label of the choice of a name in `weights.models`."""


def model_choices(kind: registry.Kind) -> dict[str, Any]:
    """The choices that a form offers; names are validated when a model is looked up."""
    registered = {"type": "string", "enum": registry.names(kind), "title": "registered"}
    return {"anyOf": [registered, {"type": "string", "title": OWN_NAME}]}


def within(allowed: Range) -> Any:
    """The constraint of a field to a range: `Annotated[int, within(IMAGES)]`."""
    if allowed.exclusive_minimum:
        return Field(gt=allowed.minimum, le=allowed.maximum)
    return Field(ge=allowed.minimum, le=allowed.maximum)


def _check_table(url: str) -> urls.Url:
    return urls.check_url(url, urls.TABLE_SCHEMES)


def _check_web(url: str) -> urls.Url:
    return urls.check_url(_require_scheme(url), urls.WEB)


def _require_scheme(url: str) -> str:
    if "://" not in url:
        raise ValueError("expected a URL such as https://host")
    return url


def _check_folder(path: str) -> str:
    if not urls.is_local_url(urls.check_url(path)):
        raise ValueError("expected a local folder, found a URL")
    return os.path.expanduser(urls.local_path(path))


_PUBLIC = PlainSerializer(urls.public_url, return_type=str, when_used="json")
"""In JSON, as in `run.json` and on a Prefect server, a URL has no secrets."""

Url = Annotated[str, AfterValidator(urls.check_url), _PUBLIC]
"""A path or URL without credentials; its value is a `urls.Url`, which prints without secrets."""

TableUrl = Annotated[str, AfterValidator(_check_table), _PUBLIC]
"""The path or URL of a prompt table."""

WebUrl = Annotated[str, AfterValidator(_check_web), _PUBLIC]
"""The URL of a web server."""

LocalFolder = Annotated[str, AfterValidator(_check_folder)]
"""A folder on this machine; `~` is the home folder."""


def _check_gpus(gpus: float | None) -> float | None:
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise ValueError(f"expected a whole number if it is more than one GPU, found {gpus}")
    return gpus


ImageDtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Field(
        description="Precision of the network. bfloat16 takes half the time on CPUs with native "
        "bfloat16; the images look the same. auto: bfloat16 on processors that multiply it "
        "themselves, else float32."
    ),
]
"""The precision of a network that outputs pixels."""

Cpus = Annotated[
    float,
    Field(
        gt=0,
        le=MAX_CPUS,
        description="CPUs that this stage needs on Ray. A worker runs all stages of its shards, so "
        "Ray reserves the most that any of them needs. Used only with `runtime.runner: ray`.",
        json_schema_extra=NOT_IDENTITY,
    ),
]
"""CPUs that a stage needs of its worker."""

Gpus = Annotated[
    float | None,
    Field(
        ge=0,
        le=MAX_GPUS,
        description="GPUs that this stage needs on Ray: a whole number, or a fraction if workers "
        "share a GPU. null is one GPU if there are any. A worker runs all stages of its shards, so "
        "Ray reserves the most that any of them needs. Used only with `runtime.runner: ray`.",
        json_schema_extra=NOT_IDENTITY,
    ),
    AfterValidator(_check_gpus),
]
"""GPUs that a stage needs of its worker."""


def union_members(annotation: Any) -> set[Any]:
    """The members of a union, with `Annotated` removed; the type itself if it is not a union."""
    if get_origin(annotation) is Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*map(union_members, get_args(annotation)))
    try:
        return {annotation}
    except TypeError:
        return set()


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a URL with a password must not appear in a log
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """A boolean is no number, and only true and false are booleans."""
        kinds = union_members(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool):
            if bool not in kinds and not kinds.isdisjoint((int, float)):
                raise ValueError(f"expected a number, found {str(value).lower()}")
        elif bool in kinds and isinstance(value, str | int | float):
            raise ValueError(f"expected true or false, found {reprlib.repr(value)}")
        return value

    added_later: ClassVar[tuple[str, ...]] = ()
    """Settings that came after 0.1. While they have their default they are part of no digest, so
    datasets made before they existed stay finished."""

    def digested(self) -> dict[str, Any]:
        """All settings as plain JSON values, without later ones that have their default."""
        data = self.model_dump(mode="json", exclude=self._unset_later())
        for name in data:
            if isinstance(section := getattr(self, name), Section):
                data[name] = section.digested()
        return data

    def _unset_later(self) -> set[str]:
        fields = type(self).model_fields
        defaults = {n: fields[n].get_default(call_default_factory=True) for n in self.added_later}
        return {n for n in self.added_later if getattr(self, n) == defaults[n]}

    def identity(self, exclude: Iterable[str] = ()) -> dict[str, Any]:
        """The settings that determine the output of a stage, as plain JSON values.

        Fields such as `batch_size` are excluded: images do not depend on them, so changing them
        must not discard completed work.

        Args:
            exclude: further fields to leave out, which the stage does not use.
        """
        left_out = set(exclude) | self._unset_later()
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == NOT_IDENTITY:
                left_out.add(name)
        return self.model_dump(mode="json", exclude=left_out)
