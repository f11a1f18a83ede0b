"""How many images a prompt gets. Imports no torch, because `plan` and `status` ask, too."""

from __future__ import annotations

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.schema.records import Prompt


def images_of(prompt: Prompt, section: GenerateConfig) -> int:
    """The number of images that the settings ask for, of the prompt's row or else of the run.

    If images are drawn in rounds, those of a round.
    """
    own = section.images if prompt.overrides.images is None else prompt.overrides.images
    return own if section.until_accepted is None else min(own, section.max_images)


def most_images_of(prompt: Prompt, section: GenerateConfig) -> int:
    """The most images that a prompt can get."""
    return images_of(prompt, section) if section.until_accepted is None else section.max_images
