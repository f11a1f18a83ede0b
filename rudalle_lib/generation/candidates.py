"""The images to draw: all replicas of all prompts, with their seeds and settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.generation.image_counts import images_of
from rudalle_lib.generation.sampling import SamplingSettings
from rudalle_lib.generation.seeds import image_seed
from rudalle_lib.schema.records import Overrides, Prompt, image_id


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image to draw.

    Attributes:
        prompt_id: its prompt.
        replica: its number among the images of its prompt, counted from 0.
        seed: its own seed.
        settings: how its tokens are sampled.
    """

    prompt_id: str
    replica: int
    seed: int
    settings: SamplingSettings

    @property
    def image_id(self) -> str:
        """The id of the image."""
        return image_id(self.prompt_id, self.replica)


Replicas = range | Mapping[str, range]
"""Numbers of images: the same ones of every prompt, or by prompt id; other prompts have none."""


def candidates_of(
    prompts: Iterable[Prompt],
    section: GenerateConfig,
    run_seed: int,
    replicas: Replicas | None = None,
) -> Iterator[Candidate]:
    """The images of prompts, in order; overrides of a prompt replace the settings of the run.

    Args:
        prompts: with their overrides.
        section: settings of the run.
        run_seed: seed of the run.
        replicas: the numbers of the images; None is all that the settings ask for.
    """
    for prompt in prompts:
        settings = _settings(prompt.overrides, section)
        base_seed = run_seed if prompt.overrides.seed is None else prompt.overrides.seed
        for replica in _numbers(prompt, section, replicas):
            seed = image_seed(base_seed, prompt.prompt_id, replica)
            yield Candidate(prompt.prompt_id, replica, seed, settings)


def _numbers(prompt: Prompt, section: GenerateConfig, replicas: Replicas | None) -> range:
    if replicas is None:
        return range(images_of(prompt, section))
    return replicas if isinstance(replicas, range) else replicas.get(prompt.prompt_id, range(0))


def _settings(overrides: Overrides, section: GenerateConfig) -> SamplingSettings:
    return SamplingSettings(
        temperature=section.temperature if overrides.temperature is None else overrides.temperature,
        top_k=section.top_k if overrides.top_k is None else overrides.top_k,
        top_p=section.top_p if overrides.top_p is None else overrides.top_p,
        guidance=section.guidance if overrides.guidance is None else overrides.guidance,
    )
