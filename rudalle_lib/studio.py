"""Trying prompts one at a time: the models of a configuration, held ready, and what they draw.

Pictures are the very ones that a run of the same configuration draws of the same prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

from torch import Tensor

from rudalle_lib.blocked_words import refusal
from rudalle_lib.config import RunConfig
from rudalle_lib.devices import resolve_devices, resolve_dtype, set_threads
from rudalle_lib.errors import PromptError, SettingsError
from rudalle_lib.pictures import draw_pictures, enlarge_pictures
from rudalle_lib.prompts import MAX_TEXT, content_digest, normalise
from rudalle_lib.records import ScoreRecord, image_id
from rudalle_lib.sampling import SamplingSettings
from rudalle_lib.scoring import Scorer
from rudalle_lib.selection import rejections
from rudalle_lib.weights import (
    LoadedDecoder,
    LoadedScorer,
    LoadedUpscaler,
    LoadedVqGan,
    load_decoder,
    load_scorer,
    load_translator,
    load_upscaler,
    load_vqgan,
)

if TYPE_CHECKING:
    from rudalle_lib.translation import Translator

AT_ONCE = 4
"""Candidates that are drawn, ranked and shown together, so that something is soon to be seen."""


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as a run would read it, and its text in the decoder's language."""

    prompt_id: str
    text: str
    text_ru: str


@dataclass(frozen=True)
class Candidate:
    """A picture, uint8 [3, H, W], its score, and why a run would not publish it, if so."""

    image_id: str
    picture: Tensor
    score: float
    rejected: str | None = None


class Drawn(NamedTuple):
    """A picture, uint8 [3, H, W], as a run would number and score it."""

    replica: int
    picture: Tensor
    score: float
    unsafe: float | None


@dataclass(frozen=True)
class Studio:
    """The models of a configuration. Make one with `Studio.load`; for one thread at a time."""

    config: RunConfig
    translator: Translator
    decoder: LoadedDecoder
    vqgan: LoadedVqGan
    scorer: LoadedScorer
    upscaler: LoadedUpscaler | None

    @classmethod
    def load(cls, config: RunConfig) -> Self:
        """Load all models of a configuration.

        Raises:
            ConfigError: a model that is unknown, or a device that is not there.
            WeightsError: weights that cannot be had.
        """
        if config.generate.width or config.generate.height:
            raise SettingsError(
                "prompts are tried on the decoder's own canvas; leave generate.width and "
                "generate.height out"
            )
        set_threads(config.runtime.threads)
        devices = resolve_devices(config.runtime.devices)
        device, weights, upscaler = devices[0], config.weights, config.upscale.model
        spread = devices if config.runtime.split_decoder else [device]
        dtype = partial(resolve_dtype, device=device)
        return cls(
            config,
            load_translator(config.translate.model, weights, device),
            load_decoder(config.generate.model, weights, spread, dtype(config.runtime.dtype)),
            load_vqgan(config.decode.model, weights, device, dtype(config.decode.dtype)),
            load_scorer(config.score.model, weights, device, dtype(config.score.dtype)),
            load_upscaler(upscaler, weights, device, dtype(config.upscale.dtype))
            if upscaler
            else None,
        )

    def read(self, text: str) -> ReadPrompt:
        """A prompt in any language that the translator knows, and its translation.

        Raises:
            PromptError: no text, too much of it, no sound translation, or a blocked word.
        """
        plain = normalise(text)
        if not plain:
            raise PromptError("There is no prompt: write what the picture shall show.")
        if len(plain) > MAX_TEXT:
            raise PromptError(
                f"A prompt has at most {MAX_TEXT:,} characters; found {len(plain):,}."
            )
        (russian,) = self.translator.translate([plain], self.config.translate.language)
        if russian is None:
            raise PromptError(
                f"{self.config.translate.model} found no sound translation; try other words, or "
                "write in Russian."
            )
        blocked = refusal(self.config.publish.blocked_words, plain, russian)
        if blocked is not None:
            raise PromptError(f"{blocked[1]}; try other words.")
        return ReadPrompt(content_digest(plain, {}), plain, russian)

    def draw(self, prompt: ReadPrompt, images: int, seed: int) -> Iterator[list[Candidate]]:
        """Draw candidates a few at a time; each time all that there are, the best first."""
        generate = self.config.generate
        settings = SamplingSettings(
            generate.temperature, generate.top_k, generate.top_p, generate.guidance
        )
        section = self.config.score
        scorer = Scorer(self.scorer.model, self.scorer.tokenizer, section.templates)
        text = scorer.text_features([prompt.text_ru])[0]  # [E]
        unsafe = scorer.text_features(section.unsafe_texts) if section.unsafe_texts else None
        drawn: list[Drawn] = []
        for first in range(0, images, AT_ONCE):
            count = min(AT_ONCE, images - first)
            pictures = draw_pictures(
                *(self.decoder, self.vqgan, prompt.text_ru, count, seed, settings, AT_ONCE),
                prompt_id=prompt.prompt_id,
                first=first,
            )
            features = scorer.image_features(pictures)  # [N, E]
            dangers = None if unsafe is None else (features @ unsafe.T).amax(1).tolist()
            for place, score in enumerate((features @ text).tolist()):
                danger = None if dangers is None else dangers[place]
                drawn.append(Drawn(first + place, pictures[place], score, danger))
            drawn.sort(key=lambda one: (-one.score, one.replica))
            yield self._judge(prompt, drawn)

    def enlarge(self, picture: Tensor) -> Tensor:
        """A picture, uint8 [3, H, W], as large as a run would publish it."""
        if self.upscaler is None:
            return picture
        return enlarge_pictures(self.upscaler, picture[None])[0]

    def _judge(self, prompt: ReadPrompt, drawn: Sequence[Drawn]) -> list[Candidate]:
        """All pictures of a prompt, the best first, and why a run would leave some out."""
        key = prompt.prompt_id
        rows = [
            ScoreRecord(image_id(key, one.replica), key, one.score, place, None, one.unsafe)
            for place, one in enumerate(drawn, start=1)
        ]
        why = rejections(rows, self.config.score)
        return [
            Candidate(row.image_id, one.picture, row.score, why.get(row.image_id, (None,))[0])
            for row, one in zip(rows, drawn, strict=True)
        ]
