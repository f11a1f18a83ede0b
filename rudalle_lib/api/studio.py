"""Try prompts one at a time, with the models of a configuration held ready.

The images are the same ones that a run of the configuration draws of the same prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import PromptError, SettingsError
from rudalle_lib.images.rows import unpack_image
from rudalle_lib.images.selection import contents_of, rank
from rudalle_lib.pipeline.in_memory import InMemoryPipeline
from rudalle_lib.prompts.cells import MAX_TEXT
from rudalle_lib.prompts.prompt_texts import normalise
from rudalle_lib.prompts.rows import content_digest
from rudalle_lib.schema.records import (
    Overrides,
    PixelsRecord,
    Prompt,
    ScoreRecord,
    TranslationRecord,
)
from rudalle_lib.selection.choices import Choice, choice_of_one
from rudalle_lib.text.blocked_words import find_blocked_word
from rudalle_lib.text.confidence import find_uncertain

IMAGES_AT_ONCE = 4
"""Candidates that are drawn, ranked and shown together, so that something is visible soon."""


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as a run would read it, and its text in the decoder's language."""

    translation: TranslationRecord

    @property
    def prompt_id(self) -> str:
        """Its id in a run."""
        return self.translation.prompt_id

    @property
    def text(self) -> str:
        """The prompt as given."""
        return self.translation.text

    @property
    def text_ru(self) -> str:
        """The prompt in Russian."""
        return self.translation.text_ru or ""


@dataclass(frozen=True)
class Trial:
    """A drawn image.

    Attributes:
        row: the image, as decoded.
        score: cosine with its prompt.
        rejected: the reason code if a run would reject it, else empty.
        why: the reason in words, with the rule and the numbers.
        second_score: cosine by the second scorer; None without one.
    """

    row: PixelsRecord
    score: float
    rejected: str = ""
    why: str = ""
    second_score: float | None = None

    @property
    def image_id(self) -> str:
        """Its id in a run."""
        return self.row.image_id

    @property
    def image(self) -> Tensor:
        """The image, uint8 [3, H, W]."""
        return unpack_image(self.row)


class Studio:
    """The models of a configuration, ready to draw. Make one with `Studio.load`."""

    def __init__(self, pipeline: InMemoryPipeline) -> None:
        """Use the models of a pipeline; those that are not loaded yet are loaded when needed."""
        self.config = pipeline.config
        self._pipeline = pipeline

    @property
    def undecided(self) -> tuple[str, ...]:
        """The rules of `select` that compare images of all prompts, so nothing is known here."""
        return tuple(str(rule) for rule in self.config.select.rules if rule.looks_across)

    @classmethod
    def load(cls, config: RunConfig) -> Self:
        """Load all models of a configuration.

        Raises:
            ConfigError: an unknown model, or a device that this machine does not have.
            SettingsError: a canvas other than the decoder's own.
            WeightsError: weights that are not available.
        """
        if config.generate.width or config.generate.height:
            raise SettingsError(
                "prompts are tried on the decoder's own canvas; leave generate.width and "
                "generate.height out"
            )
        pipeline = InMemoryPipeline(config)
        pipeline.load()
        return cls(pipeline)

    def read(self, text: str) -> ReadPrompt:
        """Read a prompt in any language that the translator knows, and translate it.

        Raises:
            PromptError: no text, too long a text, no good translation, one that is too uncertain
                for the configuration, or a blocked word.
        """
        plain = normalise(text)
        if not plain:
            raise PromptError("There is no prompt: describe what the image should show.")
        if len(plain) > MAX_TEXT:
            raise PromptError(
                f"A prompt has at most {MAX_TEXT:,} characters; found {len(plain):,}."
            )
        prompt = Prompt(content_digest(plain, {}), plain)
        (translation,), _ = self._pipeline.translate([prompt])
        if translation.text_ru is None:
            raise PromptError(
                f"{self.config.translate.model} found no good translation; try other words, or "
                "write in Russian."
            )
        blocked = find_blocked_word(self.config.publish.blocked_words, plain, translation.text_ru)
        if blocked is not None:
            raise PromptError(f"{blocked.detail}; try other words.")
        uncertain = find_uncertain(translation, self.config.translate.min_confidence)
        if uncertain is not None:
            raise PromptError(
                f"The translation {translation.text_ru!r} is too uncertain: {uncertain.detail}; "
                "try other words, or write in Russian."
            )
        return ReadPrompt(translation)

    def draw(self, prompt: ReadPrompt, images: int, seed: int) -> Iterator[list[Trial]]:
        """Draw candidates a few at a time; each time yields all so far, the best first."""
        drawn: list[tuple[PixelsRecord, ScoreRecord]] = []
        contents: dict[str, str] = {}
        texts = {prompt.prompt_id: prompt.text_ru}
        overrides = Overrides(images=images, seed=seed)
        choice = choice_of_one(self.config, prompt.prompt_id)
        planned = Prompt(prompt.prompt_id, prompt.text, overrides=overrides)
        for first in range(0, images, IMAGES_AT_ONCE):
            replicas = range(first, min(first + IMAGES_AT_ONCE, images))
            tokens, rejects = self._pipeline.draw([planned], texts, replicas)
            if rejects:
                raise PromptError(f"{rejects[prompt.prompt_id].detail}; try a shorter prompt.")
            rows = [row for row in self._pipeline.decode(tokens) if row.image is not None]
            scores = self._pipeline.score(rows, [prompt.translation])
            drawn += zip(rows, scores, strict=True)
            contents |= contents_of(tokens)
            yield self._ranked(drawn, contents, choice)

    def enlarge(self, trial: Trial) -> Tensor:
        """An image as a run would publish it: uint8 [3, H, W], or [4, H, W] if it is cut out."""
        (row,) = self._pipeline.cut_out(self._pipeline.upscale([trial.row]))
        return unpack_image(row, keep_alpha=True)

    def _ranked(
        self,
        drawn: Sequence[tuple[PixelsRecord, ScoreRecord]],
        contents: Mapping[str, str],
        choice: Choice,
    ) -> list[Trial]:
        """All images of a prompt, the best first, with the reasons why a run would reject some."""
        scores = [score for _, score in drawn]
        rejects = choice.find_rejects(scores, contents, self.config.score)
        places = rank([score.prompt_id for score in scores], [score.score for score in scores])
        ordered = sorted(zip(places, drawn, strict=True), key=lambda item: item[0])
        trials = []
        for _, (row, score) in ordered:
            why = rejects.get(row.image_id)
            code, detail = ("", "") if why is None else (why.reason, why.detail)
            trials.append(Trial(row, score.score, code, detail, score.second_score))
        return trials
