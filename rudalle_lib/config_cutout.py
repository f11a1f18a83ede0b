"""The section of a configuration that asks for transparent grounds."""

from __future__ import annotations

from pydantic import Field

from rudalle_lib.config_sections import NOT_IDENTITY, Cpus, Gpus, Positive, Section


class CutoutConfig(Section):
    """Making the ground of published images transparent, for stickers."""

    transparent: bool = Field(
        default=False, description="Publish images with a transparent ground, as PNG or WebP."
    )
    model: str | None = Field(
        default=None,
        description="Network that finds the ground, by registry name; null finds it by the colour "
        "of the image's edge, as is done anyway where the network is not sure.",
    )
    min_confidence: float = Field(
        default=0.99,
        ge=0,
        le=1,
        description="How sure the network must be of an image's pixels on average.",
    )
    batch_size: Positive = Field(
        default=4, description="Images cut out at once.", json_schema_extra=NOT_IDENTITY
    )
    cpus: Cpus = 1.0
    gpus: Gpus = None
