"""Events of a small run, for the tests of what shows them."""

from __future__ import annotations

from rudalle_lib.prompts.plan import Plan
from rudalle_lib.schema.records import DataFile, ShardManifest, ShardSpec, StageArtifact
from tasks.runtime.events import Event, Planned, ShardFailed, ShardFinished, Step

SHARDS = tuple(ShardSpec(index, f"plan/{index:05d}.parquet", 2) for index in range(2))
PLAN = Plan(
    shards=SHARDS,
    new_shards=(1,),
    new_prompts=2,
    new_images=8,
    table="prompts.csv",
    rows=7,
    rejected={"duplicate": 1, "empty_prompt": 2},
    removed=0,
)
MANIFEST = ShardManifest(
    index=0,
    fingerprint="f",
    config_digest="c",
    prompts=2,
    images=8,
    kept=3,
    rejected={"not_in_best_k": 5},
    image_bytes=10,
    metadata=DataFile("data/metadata/00000.parquet", 1, ""),
    rejects=None,
    stages={
        "translate": StageArtifact("u", "f", 2, 9.0, devices=1, until="2021-11-02T00:00:00+00:00"),
        "generate": StageArtifact("u", "f", 8, 1.25, devices=1, until="2999-01-01T00:00:00+00:00"),
    },
    finished="",
)
EVENTS: tuple[Event, ...] = (
    Planned(PLAN, 2),
    Step("generate", 0, 1, 4),
    ShardFinished(MANIFEST),
    ShardFailed(1, "decode: [bold]no[/bold]"),
)
