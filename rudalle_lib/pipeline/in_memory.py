"""The stages of a configuration for a few prompts, in memory: the functions that the tasks call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from rudalle_lib.config.run import RunConfig
from rudalle_lib.generation.draw import draw_candidates, drawing_batch_size, image_prompt_encoder
from rudalle_lib.images.cutout import cut_out_rows
from rudalle_lib.images.decoding import decode_rows
from rudalle_lib.images.measures import compare_translations
from rudalle_lib.images.scoring import Scorer, score_rows
from rudalle_lib.images.upscaling import upscale_rows
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.runtime.devices import resolve_devices, resolve_dtype, set_threads
from rudalle_lib.schema.records import (
    PixelsRecord,
    Prompt,
    Reject,
    ScoreRecord,
    TokensRecord,
    TranslationRecord,
)
from rudalle_lib.text.prompt_translation import (
    needs_translator,
    translate_prompts,
    translated_pairs,
)
from rudalle_lib.text.translation import Translator
from rudalle_lib.weights.loading import (
    LoadedDecoder,
    LoadedSegmenter,
    LoadedUpscaler,
    LoadedVqGan,
    load_decoder,
    load_scorer,
    load_segmenter,
    load_translator,
    load_upscaler,
    load_vqgan,
)
from rudalle_lib.weights.second_scorer import LoadedSecond, load_second_scorer, second_of


class InMemoryPipeline:
    """The models of a configuration and the stages that run them; for one thread at a time.

    A model is loaded when its stage first runs. Every method raises `ConfigError` for an unknown
    model or device and `WeightsError` for weights that are not available.
    """

    def __init__(self, config: RunConfig) -> None:
        """Resolve the devices of the configuration.

        Raises:
            SettingsError: a device that this machine does not have.
        """
        self.config = config
        set_threads(config.runtime.threads)
        devices = resolve_devices(config.runtime.devices)
        self.devices = tuple(devices if config.runtime.split_decoder else devices[:1])

    # --- models ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of all networks but a split decoder."""
        return self.devices[0]

    @cached_property
    def translator(self) -> Translator:
        """The translator, in float32."""
        return load_translator(self.config.translate.model, self.config.weights, self.device)

    @cached_property
    def decoder(self) -> LoadedDecoder:
        """The decoder, its layers on all devices if it is split."""
        dtype = self._dtype(self.config.runtime.dtype)
        return load_decoder(self.config.generate.model, self.config.weights, self.devices, dtype)

    @cached_property
    def vqgan(self) -> LoadedVqGan:
        """The VQ-GAN that decodes images."""
        dtype = self._dtype(self.config.decode.dtype)
        return load_vqgan(self.config.decode.model, self.config.weights, self.device, dtype)

    @cached_property
    def image_encoder(self) -> VqGan:
        """The VQ-GAN that reads image prompts, in float32."""
        name = self.config.generate.image_encoder or self.config.decode.model
        return load_vqgan(name, self.config.weights, self.device).model

    @cached_property
    def scorer(self) -> Scorer:
        """The ruCLIP with the templates of the configuration."""
        section = self.config.score
        dtype = self._dtype(section.dtype)
        loaded = load_scorer(section.model, self.config.weights, self.device, dtype)
        return Scorer(loaded.model, loaded.tokenizer, section.templates, section.batch_size)

    @cached_property
    def second_scorer(self) -> LoadedSecond | None:
        """The second scorer, if there is one."""
        section = self.config.score
        if section.second_model is None:
            return None
        dtype = self._dtype(section.dtype)
        return load_second_scorer(section.second_model, self.config.weights, self.device, dtype)

    @cached_property
    def upscaler(self) -> LoadedUpscaler | None:
        """The super-resolution network, if there is one."""
        section = self.config.upscale
        if section.model is None:
            return None
        dtype = self._dtype(section.dtype)
        return load_upscaler(section.model, self.config.weights, self.device, dtype)

    @cached_property
    def segmenter(self) -> LoadedSegmenter | None:
        """The segmentation network, if there is one."""
        name = self.config.cutout.model
        return None if name is None else load_segmenter(name, self.config.weights, self.device)

    def load(self) -> None:
        """Load all models that the stages of the configuration run."""
        _ = self.translator, self.decoder, self.vqgan, self.scorer, self.second_scorer
        _ = self.upscaler
        if self.config.cutout.transparent:
            _ = self.segmenter

    def _dtype(self, name: str) -> torch.dtype:
        return resolve_dtype(name, self.device)

    # --- stages ------------------------------------------------------------------------------

    def translate(
        self, prompts: Sequence[Prompt]
    ) -> tuple[list[TranslationRecord], dict[str, Reject]]:
        """As `text.prompt_translation.translate_prompts`."""
        section = self.config.translate
        source, _ = self.config.weights.find(section.model, "translator").languages
        needed = needs_translator(prompts, section.language, source)
        translator = self.translator if needed else None
        return translate_prompts(prompts, section.language, source, translator, section.batch_size)

    def draw(
        self,
        prompts: Sequence[Prompt],
        texts: Mapping[str, str],
        replicas: range | None = None,
        batch_rows: int = 0,
    ) -> tuple[list[TokensRecord], dict[str, Reject]]:
        """As `generation.draw.draw_candidates`."""
        section, model = self.config.generate, self.decoder.model
        return draw_candidates(
            self.decoder,
            prompts,
            texts,
            section,
            self.config.seed,
            image_prompt_encoder(
                lambda: self.image_encoder,
                section,
                model.config.image_vocab_size,
                self.config.prompts.reading(rows=True),
            ),
            drawing_batch_size(section, model, self.devices, prompts),
            replicas=replicas,
            batch_rows=batch_rows,
        )

    def decode(self, rows: Sequence[TokensRecord]) -> list[PixelsRecord]:
        """As `images.decoding.decode_rows`."""
        return decode_rows(self.vqgan.model, rows, self.config.decode.batch_size).rows()

    def score(
        self, rows: Sequence[PixelsRecord], translations: Sequence[TranslationRecord]
    ) -> list[ScoreRecord]:
        """As `images.scoring.score_rows`, with all that the configuration measures."""
        section, loaded = self.config.score, self.second_scorer
        pairs = translated_pairs(translations) if section.compare_translations else {}
        return score_rows(
            self.scorer,
            rows,
            {row.prompt_id: row.text_ru or "" for row in translations},
            section,
            second=None if loaded is None else second_of(loaded, section, translations),
            similarities=compare_translations(self.scorer, pairs),
        )

    def upscale(self, rows: Sequence[PixelsRecord]) -> list[PixelsRecord]:
        """As `images.upscaling.upscale_rows`; without an upscaler images stay as decoded."""
        if self.upscaler is None:
            return list(rows)
        return upscale_rows(self.upscaler.model, rows, self.config.upscale).rows()

    def cut_out(self, rows: Sequence[PixelsRecord]) -> Sequence[PixelsRecord]:
        """As `images.cutout.cut_out_rows`, if the configuration asks for transparency."""
        section = self.config.cutout
        if not section.transparent:
            return rows
        network = None if self.segmenter is None else self.segmenter.model
        return cut_out_rows(network, rows, section).rows()
