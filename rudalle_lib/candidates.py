"""Which images are to be drawn: every replica of every prompt, with its seed and settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rudalle_lib.config import GenerateConfig
from rudalle_lib.records import Overrides, Prompt, image_id
from rudalle_lib.sampling import SamplingSettings
from rudalle_lib.seeds import image_seed


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image to draw; `replica` is its number among the images of its prompt."""

    prompt_id: str
    replica: int
    seed: int
    settings: SamplingSettings

    @property
    def image_id(self) -> str:
        """The id of the image."""
        return image_id(self.prompt_id, self.replica)


def candidates_of(
    prompts: Iterable[Prompt], section: GenerateConfig, run_seed: int
) -> Iterator[Candidate]:
    """The images of prompts, in order; what a prompt overrides replaces the run's setting."""
    for prompt in prompts:
        own = prompt.overrides
        settings = _settings(own, section)
        seed = run_seed if own.seed is None else own.seed
        for replica in range(section.images if own.images is None else own.images):
            own_seed = image_seed(seed, prompt.prompt_id, replica)
            yield Candidate(prompt.prompt_id, replica, own_seed, settings)


def _settings(own: Overrides, section: GenerateConfig) -> SamplingSettings:
    return SamplingSettings(
        temperature=section.temperature if own.temperature is None else own.temperature,
        top_k=section.top_k if own.top_k is None else own.top_k,
        top_p=section.top_p if own.top_p is None else own.top_p,
        guidance=section.guidance if own.guidance is None else own.guidance,
    )
