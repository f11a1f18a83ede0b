"""The candidates of a shard: those that are drawn, in earlier runs or this one, and more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.generation.draw import (
    decoder_rows,
    draw_candidates,
    drawing_batch_size,
    image_prompt_encoder,
)
from rudalle_lib.pipeline.artifacts import read_artifact, with_rejects, write_artifact
from rudalle_lib.pipeline.reuse import find_made
from rudalle_lib.prompts.plan import read_shard
from rudalle_lib.runtime.batching import OnProgress
from rudalle_lib.schema.arrow import from_table, to_table
from rudalle_lib.schema.records import StageArtifact, TokensRecord, TranslationRecord, image_id
from rudalle_lib.storage.storage import Storage
from rudalle_lib.storage.urls import remember_urls
from rudalle_lib.text.confidence import UNCERTAIN, find_all_uncertain
from tasks.runtime.job import Job
from tasks.runtime.models import decoder, device_slot, vqgan

STAGE = "generate"


class Candidates:
    """The candidates of a shard: those that have been drawn, and more on demand.

    Of each prompt the first few are drawn, without gaps.
    """

    def __init__(
        self,
        section: GenerateConfig,
        job: Job,
        translated: StageArtifact,
        fingerprint: str,
        run_seed: int,
        min_confidence: float | None = None,
    ) -> None:
        """Read what is drawn already. The arguments are those of `generate`."""
        self._section, self._job, self._run_seed = section, job, run_seed
        self._fingerprint, self._storage = fingerprint, Storage(job.output)
        translations = from_table(read_artifact(self._storage, translated), TranslationRecord)
        self._texts = {
            row.prompt_id: row.text_ru for row in translations if row.text_ru is not None
        }
        self.prompts = read_shard(self._storage, job.shard)
        made = find_made(
            self._storage, STAGE, job.shard, fingerprint, TokensRecord, job.reuse, job.term
        )
        uncertain = find_all_uncertain(translations, min_confidence)
        self._earlier = made.rows.keys()
        self._rows = {
            name: row for name, row in made.rows.items() if row.prompt_id not in uncertain
        }
        self._rejects = {
            name: why for name, why in made.rejects.items() if why.reason != UNCERTAIN
        } | uncertain
        self._seconds, self._use, self._saved = made.seconds, made.use, made.saved
        remember_urls(job.signed)

    @property
    def drawable(self) -> set[str]:
        """The prompts that have a text and were not rejected."""
        return self._texts.keys() - self._rejects.keys()

    @property
    def drawn(self) -> Counter[str]:
        """How many images of each prompt are drawn."""
        return Counter(row.prompt_id for row in self._rows.values())

    def draw(self, wanted: Mapping[str, int], report: OnProgress) -> None:
        """Draw what is missing.

        Args:
            wanted: number of images by prompt id.
            report: called with drawn image tokens, and all that are to be drawn.
        """
        drawn, drawable = self.drawn, self.drawable
        missing = {
            prompt_id: range(drawn[prompt_id], number)
            for prompt_id, number in wanted.items()
            if number > drawn[prompt_id] and prompt_id in drawable
        }
        if missing:
            self._draw(missing, report)

    def _draw(self, missing: Mapping[str, range], report: OnProgress) -> None:
        section, job = self._section, self._job
        with device_slot(job.runtime, job.shard.index, job.runtime.split_decoder, "draw") as slot:
            loaded = decoder(section.model, job.weights, slot.devices, job.runtime.dtype)
            batch_size = job.batch_size or drawing_batch_size(section, loaded.model, slot.devices)
            # On a GPU the last bits depend on the rows, so all images of a shard have the same.
            batch_rows = self._use.batch_rows or decoder_rows(section, batch_size)
            records, rejects = draw_candidates(
                loaded,
                [prompt for prompt in self.prompts if prompt.prompt_id in missing],
                self._texts,
                section,
                self._run_seed,
                image_prompt_encoder(
                    lambda: (
                        vqgan(
                            section.image_encoder or "", job.weights, slot.device, "float32"
                        ).model
                    ),
                    section,
                    loaded.model.config.image_vocab_size,
                    job.reading,
                ),
                batch_size,
                report,
                missing,
                batch_rows,
            )
        self._rows |= {row.image_id: row for row in records}
        self._rejects |= rejects
        self._seconds += slot.seconds
        self._use, self._saved = replace(slot.use, batch_rows=batch_rows), None

    def write(self, wanted: Mapping[str, int] | None, finished: bool = True) -> StageArtifact:
        """Write the artifact.

        Args:
            wanted: number of images by prompt id; more that are drawn are left out. None is all.
            finished: whether no more are drawn.
        """
        if self._saved is not None and wanted is None and not finished:
            return self._saved
        drawn = self.drawn
        wanted = drawn if wanted is None else wanted
        ids = [
            image_id(prompt.prompt_id, replica)
            for prompt in self.prompts
            for replica in range(min(wanted[prompt.prompt_id], drawn[prompt.prompt_id]))
        ]
        table = to_table([self._rows[one] for one in ids], TokensRecord)
        use = replace(self._use, reused=sum(one in self._earlier for one in ids))
        job = self._job
        return write_artifact(
            self._storage, STAGE, job.shard, self._fingerprint, with_rejects(table, self._rejects),
            self._seconds, use, job.term, job.reuse.rows.get(STAGE), finished,
        )  # fmt: skip
