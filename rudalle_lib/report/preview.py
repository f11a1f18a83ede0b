"""A forecast of a run from a few of its prompts: the yield, and the time and cost of all of them.

The sample consists of the prompts with the smallest digests of their ids, so it is a fair sample of
the table and the same every time. It is drawn into a temporary output, not into that of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import PromptsConfig
from rudalle_lib.config.selection import SelectConfig
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import PromptError
from rudalle_lib.images.codecs import to_pil
from rudalle_lib.images.rows import unpack_image
from rudalle_lib.pipeline.artifacts import read_artifact
from rudalle_lib.pipeline.publish import read_shard_results, select_images
from rudalle_lib.prompts.rows import read_table
from rudalle_lib.report.contact_sheet import Tile, draw_contact_sheet, encode_contact_sheet
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import PixelsRecord, ShardManifest, StageArtifact
from rudalle_lib.schema.tables import join_tables
from rudalle_lib.selection.choices import NO_CHOICE, Choice
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.storage import Storage

MAX_SHEET_IMAGES = 64
"""Maximum number of images on the contact sheet."""


@dataclass(frozen=True)
class Sample:
    """A sample of a prompt table, and the size of the whole table."""

    chosen: pa.Table
    """The sampled prompts, in the columns of a plan file."""

    prompts: int
    """Prompts of the whole table."""

    images: int
    """Candidate images of the whole table."""


@dataclass(frozen=True)
class Forecast:
    """What a run of the whole table would produce and use."""

    images: int
    """Candidate images."""

    published: int
    """Published images."""

    seconds: float
    """Time from start to end."""

    device_hours: float
    """Hours during which devices are held, summed over devices."""

    bytes: int
    """Size of the output."""

    cost: float | None
    """Cost of the device hours; None without a price."""

    @property
    def cost_per_published(self) -> float | None:
        """Cost per published image; None without a price or without published images."""
        return None if self.cost is None or not self.published else self.cost / self.published


def choose_prompts(source: PromptsConfig, images: int, count: int) -> Sample:
    """Read the table once and choose `count` of its prompts, or all if it has fewer.

    Args:
        source: the prompt table.
        images: candidates per prompt, unless its row sets another number.
        count: size of the sample.

    Raises:
        PromptError: when the table cannot be read or has no usable row.
        StorageError: when the table does not exist.
    """
    seen: set[str] = set()
    chosen: pa.Table | None = None
    drawn = 0
    for block in read_table(source):
        new = _first_of_each(block.prompts, seen)
        drawn += int(pc.sum(pc.fill_null(new.column("images"), images)).as_py() or 0)
        joined = [new] if chosen is None else [chosen, new]
        chosen = _smallest(join_tables(joined), count)
    if chosen is None or chosen.num_rows == 0:
        raise PromptError(
            f"The prompt table {public_url(source.uri)} has no usable row; `rudalle-flows plan` "
            "shows why its rows were rejected."
        )
    return Sample(chosen, len(seen), drawn)


def for_sample(select: SelectConfig, sample: Sample) -> SelectConfig:
    """The rules for a sample: the best N of all images are N times its share of the prompts."""
    share = sample.chosen.num_rows / sample.prompts
    rules = [
        rule.model_copy(update={"keep_best": max(1, round(rule.keep_best * share))})
        if rule.looks_across and rule.keep_best is not None
        else rule
        for rule in select.rules
    ]
    return select.model_copy(update={"rules": tuple(rules)})


def forecast(
    sample: Sample, drawn: ShardManifest, stage_bytes: int, lanes: int, price: float | None
) -> Forecast:
    """Extrapolate from the sample to the whole table.

    Args:
        sample: the sample, and the size of the table.
        drawn: manifest of the shard with the sample; models were loaded before it started.
        stage_bytes: size of the files that its stages keep.
        lanes: number of shards processed concurrently, each on its own devices.
        price: price per device hour; None if unknown.
    """
    per_prompt = sample.prompts / drawn.prompts
    per_image = sample.images / max(drawn.images, 1)
    seconds = {
        stage: artifact.seconds * (per_prompt if stage == "translate" else per_image)
        for stage, artifact in drawn.stages.items()
    }
    held = sum(seconds[stage] * artifact.devices for stage, artifact in drawn.stages.items())
    return Forecast(
        images=sample.images,
        published=round(drawn.kept * per_image),
        seconds=sum(seconds.values()) / lanes,
        device_hours=held / 3600,
        bytes=round((drawn.image_bytes + stage_bytes) * per_image),
        cost=None if price is None else price * held / 3600,
    )


def draw_sheet(
    storage: Storage,
    index: int,
    artifacts: Mapping[str, StageArtifact],
    config: RunConfig,
    choice: Choice = NO_CHOICE,
) -> bytes:
    """Draw a contact sheet of all candidates of a shard, the best of each prompt first, as PNG.

    The note under each image has its score and, if it would be rejected, the reason.

    Args:
        storage: the output with the shard.
        index: of the shard.
        artifacts: of its stages.
        config: title and limits.
        choice: what decides beside the limits.
    """
    shard = read_shard_results(storage, index, artifacts)
    kept, rejects = select_images(shard, config.score, config.publish.blocked_words, choice)
    reasons = {row.image_id: row.reason.replace("_", " ") for row in rejects}
    drawn = from_table(read_artifact(storage, artifacts["decode"]), PixelsRecord)
    images = {row.image_id: row for row in drawn} | dict(shard.images)
    order = {prompt_id: position for position, prompt_id in enumerate(shard.translations)}
    rows = sorted(
        (row for row in shard.tokens if row.image_id in shard.scores),
        key=lambda row: (order[row.prompt_id], shard.scores[row.image_id].rank),
    )
    tiles = [
        Tile(
            to_pil(unpack_image(images[row.image_id], keep_alpha=True)),
            shard.translations[row.prompt_id].text,
            _note(shard.scores[row.image_id].score, reasons.get(row.image_id)),
        )
        for row in rows[:MAX_SHEET_IMAGES]
    ]
    facts = [f"{len(kept)} of {len(shard.tokens)} candidates would be published", "preview"]
    return encode_contact_sheet(draw_contact_sheet(tiles, config.name, facts))


def _note(score: float, reason: str | None) -> str:
    return f"{score:.3f}" if reason is None else f"{score:.3f} · {reason}"


def _first_of_each(prompts: pa.Table, seen: set[str]) -> pa.Table:
    """Return the prompts that are not in `seen`, and add them to it."""
    new = []
    for position, prompt_id in enumerate(prompts.column("prompt_id").to_pylist()):
        if prompt_id not in seen:
            seen.add(prompt_id)
            new.append(position)
    return prompts.take(pa.array(new, pa.int64()))


def _smallest(prompts: pa.Table, count: int) -> pa.Table:
    """Return the `count` rows with the smallest digests, in the order of the table."""
    ids = prompts.column("prompt_id").to_pylist()
    chosen = sorted(range(len(ids)), key=lambda position: digest_of(ids[position]))[:count]
    return prompts.take(pa.array(sorted(chosen), pa.int64()))
