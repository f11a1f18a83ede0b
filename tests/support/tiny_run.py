"""A small run of the tiny models: prompt tables, configurations, and snapshots of the output."""

from __future__ import annotations

from pathlib import Path

from rudalle_lib.config.run import RunConfig
from rudalle_lib.pipeline.artifacts import stage_path
from rudalle_lib.pipeline.stages import fingerprints, weight_digests
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.storage.storage import Storage

TABLE = """prompt,images,seed,top_p,theme
чёрный квадрат на белом фоне,3,,,malevich
красный круг на сером фоне,,7,,malevich
,,,,bad
синий крест на бежевом фоне,,,0.5,colour
a red square on a white background,,,,english
чёрный квадрат на белом фоне,3,,,again
жёлтая полоса на чёрном фоне,many,,,bad
большой зелёный треугольник на сером фоне,,,,colour
"""
"""Five prompts, one of them in English, and three rows that are rejected."""

LONG_TABLE = """prompt,images
чёрный квадрат,10
красный круг,100
синий крест,100
белая полоса,100
жёлтый треугольник,100
зелёный квадрат,100
"""
"""With one prompt per shard, the first shard is soon done, and each other one takes seconds if its
images are drawn one by one."""


def configure(settings: dict[str, object], output: Path | str, **changes: object) -> RunConfig:
    """A configuration with changes; `score={...}` replaces only these settings of the section."""
    merged = dict(settings)
    for name, change in changes.items():
        section = settings.get(name)
        if isinstance(section, dict) and isinstance(change, dict):
            merged[name] = {**section, **change}
        else:
            merged[name] = change
    return RunConfig.model_validate({**merged, "output": str(output)})


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Modification time in nanoseconds and size in bytes of each file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in files
    }


def contents(folder: Path, *parts: str) -> dict[str, bytes]:
    """The content of each file below the given subfolders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for part in parts
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def block_stage(config: RunConfig, stage: str, index: int) -> Path:
    """Plan a run, and let a stage fail for a shard: a folder is where its artifact would be.

    Returns:
        The folder; without it, the stage works again.
    """
    storage = Storage(config.output)
    shard = plan_run(config, storage).shards[index]
    fingerprint = fingerprints(config, weight_digests(config), shard)[stage]
    path = Path(config.output) / stage_path(stage, shard, fingerprint)
    (path / "in the way").mkdir(parents=True)
    return path
