"""Which shards decisions by hand are about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.dataset.curation import Curation
from rudalle_lib.errors import ConfigError
from rudalle_lib.schema.decisions import ByHand
from rudalle_lib.schema.records import ShardSpec, image_id
from rudalle_lib.storage.storage import Storage


def find_shards(
    curation: Curation, storage: Storage, shards: Sequence[ShardSpec], section: GenerateConfig
) -> dict[int, dict[str, ByHand]]:
    """The decisions about each shard that there are any about.

    Args:
        curation: all decisions.
        storage: the output.
        shards: whose plan files exist.
        section: says how many candidates prompts have.

    Raises:
        ConfigError: a decision is about an image that no prompt of the plan has; the message names
            its line.
    """
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for name in curation.decisions:
        wanted[name.rpartition("-")[0]].append(name)
    found: dict[int, dict[str, ByHand]] = {}
    for shard in shards if wanted else ():
        counts = _image_counts(storage, shard, section)
        names = sorted(n for prompt in counts.keys() & wanted.keys() for n in wanted.pop(prompt))
        for name in names:
            _check_replica(curation, name, counts[name.rpartition("-")[0]])
        if names:
            found[shard.index] = {name: curation.decisions[name] for name in names}
    unknown = [name for names in wanted.values() for name in names]
    if unknown:
        first = min(unknown, key=lambda name: curation.lines.get(name, 0))
        raise _unknown(curation, first, "no prompt of the plan has it")
    return found


def _image_counts(storage: Storage, shard: ShardSpec, section: GenerateConfig) -> dict[str, int]:
    """The number of candidate images that each prompt of a shard has at most, by prompt id."""
    table = storage.read_table(storage.relative(shard.plan_uri), ["prompt_id", "images"])
    counts = [
        (own or section.images) if section.until_accepted is None else section.max_images
        for own in table.column("images").to_pylist()
    ]
    return dict(zip(table.column("prompt_id").to_pylist(), counts, strict=True))


def _check_replica(curation: Curation, name: str, count: int) -> None:
    prompt_id, _, replica = name.rpartition("-")
    number = int(replica) if replica.isascii() and replica.isdecimal() else -1
    if number < 0 or name != image_id(prompt_id, number):
        raise _unknown(curation, name, f"the ids of its prompt are like {image_id(prompt_id, 0)}")
    if number >= count:
        raise _unknown(curation, name, f"its prompt has {count} images, numbered from 0")


def _unknown(curation: Curation, name: str, why: str) -> ConfigError:
    what = f"there is no image {name[:200]!r} in this output ({why}); correct or remove the row"
    return curation.error(name, what)
