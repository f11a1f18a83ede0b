"""What a run would give, judged from a few of its prompts: the yield, and what all would take.

The prompts are those with the smallest digests of their ids, so they are a fair sample of the whole
table, the same one every time. They are drawn in an output of their own; the run's is not touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from rudalle_lib.config import PromptsConfig, ScoreConfig
from rudalle_lib.contact_sheet import Tile, draw_contact_sheet, encode_contact_sheet
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import PromptError
from rudalle_lib.prompts import read_prompt_blocks
from rudalle_lib.publishing import judge, read_shard_results
from rudalle_lib.record_tables import from_table
from rudalle_lib.records import PictureRecord, ShardManifest, StageArtifact
from rudalle_lib.stages import read_artifact
from rudalle_lib.storage import Storage
from rudalle_lib.storage_errors import public_url

SHEET = 64
"""Pictures on the sheet, at most."""


@dataclass(frozen=True)
class Sample:
    """Some prompts of a table, in the columns of a plan file, and how many prompts and candidate
    images the whole table has.
    """

    chosen: pa.Table
    prompts: int
    images: int


@dataclass(frozen=True)
class Forecast:
    """What the whole table would take: images, seconds from start to end, the hours that devices
    are held, bytes of the output, and what the device hours cost where there is a price.
    """

    images: int
    published: int
    seconds: float
    device_hours: float
    bytes: int
    cost: float | None

    @property
    def cost_per_published(self) -> float | None:
        """What a published image costs; None without a price, or where nothing is published."""
        return None if self.cost is None or not self.published else self.cost / self.published


def choose_prompts(source: PromptsConfig, images: int, count: int) -> Sample:
    """Read the table once and choose `count` of its prompts, fewer where it has fewer.

    Args:
        source: the prompt table.
        images: candidates of a prompt that asks for no number of its own.
        count: how many prompts.

    Raises:
        PromptError: the table cannot be read, or has no usable row.
        StorageError: it is not there.
    """
    seen: set[str] = set()
    chosen: pa.Table | None = None
    drawn = 0
    for block in read_prompt_blocks(source.uri, source.columns, source.limit):
        new = _first_of_each(block.prompts, seen)
        drawn += int(pc.sum(pc.fill_null(new.column("images"), images)).as_py() or 0)
        joined = [new] if chosen is None else [chosen, new]
        chosen = _smallest(pa.concat_tables(joined, promote_options="default"), count)
    if chosen is None or chosen.num_rows == 0:
        raise PromptError(
            f"The prompt table {public_url(source.uri)} has no usable row; `rudalle-flows plan` "
            "says what is wrong with its rows."
        )
    return Sample(chosen, len(seen), drawn)


def forecast(
    sample: Sample, drawn: ShardManifest, stage_bytes: int, lanes: int, price: float | None
) -> Forecast:
    """What the whole table would take, if all of it is as what has been drawn.

    Args:
        sample: the prompts, and the size of the table.
        drawn: the shard that they were drawn as, with models that were loaded before.
        stage_bytes: size of what its stages keep.
        lanes: shards that are worked on at once, each on devices of its own.
        price: of a device for an hour.
    """
    by_prompt = sample.prompts / drawn.prompts
    by_image = sample.images / max(drawn.images, 1)
    seconds = {
        stage: artifact.seconds * (by_prompt if stage == "translate" else by_image)
        for stage, artifact in drawn.stages.items()
    }
    held = sum(seconds[stage] * artifact.devices for stage, artifact in drawn.stages.items())
    return Forecast(
        images=sample.images,
        published=round(drawn.kept * by_image),
        seconds=sum(seconds.values()) / lanes,
        device_hours=held / 3600,
        bytes=round((drawn.image_bytes + stage_bytes) * by_image),
        cost=None if price is None else price * held / 3600,
    )


def draw_sheet(
    storage: Storage,
    index: int,
    artifacts: Mapping[str, StageArtifact],
    selection: ScoreConfig,
    title: str,
) -> bytes:
    """A contact sheet of all candidates of a shard, the best of each prompt first, as PNG.

    Under each stands its score, and why it would not be published if it would not.
    """
    shard = read_shard_results(storage, index, artifacts)
    kept, rejects = judge(shard, selection)
    reasons = {row.image_id: row.reason.replace("_", " ") for row in rejects}
    drawn = from_table(read_artifact(storage, artifacts["decode"]), PictureRecord)
    pictures = {row.image_id: row for row in drawn} | dict(shard.pictures)
    order = {prompt_id: place for place, prompt_id in enumerate(shard.translations)}
    rows = sorted(
        (row for row in shard.tokens if row.image_id in shard.scores),
        key=lambda row: (order[row.prompt_id], shard.scores[row.image_id].rank),
    )
    tiles = [
        Tile(
            Image.open(io.BytesIO(pictures[row.image_id].picture or b"")),
            shard.translations[row.prompt_id].text,
            " · ".join(filter(None, [f"{shard.scores[row.image_id].score:.3f}", reason])),
        )
        for row in rows[:SHEET]
        for reason in [reasons.get(row.image_id)]
    ]
    facts = [f"{len(kept)} of {len(shard.tokens)} candidates would be published", "preview"]
    return encode_contact_sheet(draw_contact_sheet(tiles, title, facts))


def _first_of_each(prompts: pa.Table, seen: set[str]) -> pa.Table:
    """The prompts that were not seen yet; notes them."""
    new = []
    for position, prompt_id in enumerate(prompts.column("prompt_id").to_pylist()):
        if prompt_id not in seen:
            seen.add(prompt_id)
            new.append(position)
    return prompts.take(pa.array(new, pa.int64()))


def _smallest(prompts: pa.Table, count: int) -> pa.Table:
    """The rows with the smallest digests, in their order."""
    ids = prompts.column("prompt_id").to_pylist()
    chosen = sorted(range(len(ids)), key=lambda position: digest_of(ids[position]))[:count]
    return prompts.take(pa.array(sorted(chosen), pa.int64()))
