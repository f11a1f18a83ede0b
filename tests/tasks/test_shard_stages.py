"""The order of a shard's tasks, and the artifacts that each of them gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from prefect import Task

from rudalle_lib.config.run import RunConfig
from rudalle_lib.pipeline.stages import STAGES, active_stages, fingerprints
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.schema.records import ShardSpec
from rudalle_lib.storage.storage import Storage
from tasks.shard_stages import signed_urls, start_stages

SHARD = ShardSpec(3, "plan/00003.parquet", 2, "digest of the prompts")
WEIGHTS = {"generate": "w"}
LEASE: Any = object()


def started(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The parameters of each task by its name; a task "returns" its name in capitals."""
    calls: dict[str, dict[str, Any]] = {}

    def start(task: Task[Any, Any], **parameters: Any) -> str:
        assert task.name not in calls
        calls[task.name] = parameters
        return task.name.upper()

    results = start_stages(start, config, WEIGHTS, SHARD, lease=LEASE)
    assert results == {name: name.upper() for name in calls}
    return calls


@pytest.mark.parametrize("upscaler", [None, "demo-realesrgan-x2"])
@pytest.mark.parametrize("transparent", [False, True])
def test_active_stages_start_in_order_with_their_section_and_fingerprint(
    upscaler: str | None, transparent: bool
) -> None:
    config = RunConfig.model_validate(
        {"upscale": {"model": upscaler}, "cutout": {"transparent": transparent}}
    )
    calls = started(config)
    assert list(calls) == [stage.name for stage in active_stages(config)]
    expected = fingerprints(config, WEIGHTS, SHARD)
    for name, parameters in calls.items():
        assert parameters["section"] is STAGES[name].section(config)
        assert parameters["fingerprint"] == expected[name]
        job = parameters["job"]
        assert (job.shard, job.output, job.lease) == (SHARD, config.output, LEASE)


def test_stages_get_the_artifacts_of_earlier_stages() -> None:
    config = RunConfig.model_validate({"cutout": {"transparent": True}})
    calls = started(config)
    assert calls["generate"]["translated"] == "TRANSLATE"
    assert calls["decode"]["generated"] == "GENERATE"
    assert (calls["score"]["translated"], calls["score"]["decoded"]) == ("TRANSLATE", "DECODE")
    assert (calls["upscale"]["decoded"], calls["upscale"]["scored"]) == ("DECODE", "SCORE")
    assert (calls["cutout"]["images"], calls["cutout"]["scored"]) == ("UPSCALE", "SCORE")
    names = [name for name in calls if name != "publish"]
    assert calls["publish"]["artifacts"] == {name: name.upper() for name in names}
    assert calls["publish"]["models"] == {
        name: cast(Any, STAGES[name].section(config)).model for name in names if name != "cutout"
    }


def test_without_an_upscaler_decoded_images_are_cut_out() -> None:
    changes = {"upscale": {"model": None}, "cutout": {"transparent": True}}
    assert started(RunConfig.model_validate(changes))["cutout"]["images"] == "DECODE"


def test_tasks_in_other_processes_get_the_signatures_of_image_prompts(tmp_path: Path) -> None:
    """The plan has none; only the process that has read the table knows them.

    Tasks may be in other processes with every runner: on Ray, or on several GPUs.
    """
    table = "prompt,image_prompt,image_prompt_borders\nкруг,https://host/a.png?token=secret,up=1\n"
    (tmp_path / "prompts.csv").write_text(table, encoding="utf-8")
    config = RunConfig.model_validate(
        {"output": str(tmp_path / "out"), "prompts": {"uri": str(tmp_path / "prompts.csv")}}
    )
    (shard,) = plan_run(config, Storage(config.output)).shards
    (url,) = signed_urls(config, shard)
    assert url.full == "https://host/a.png?token=secret" and "secret" not in repr((url,))
    assert signed_urls(config, SHARD) == ()
