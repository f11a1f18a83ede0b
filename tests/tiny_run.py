"""A small run on the tiny stack: its prompt table, and a configuration with changes."""

from __future__ import annotations

from pathlib import Path

from rudalle_lib.config import RunConfig

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
чёрный квадрат,200
красный круг,200
синий крест,200
белая полоса,200
жёлтый треугольник,200
зелёный квадрат,200
"""
"""With one prompt a shard, each takes long if its pictures are drawn one by one."""


def configure(settings: dict[str, object], output: Path | str, **changes: object) -> RunConfig:
    """A configuration; a change such as `score={...}` replaces settings inside the section."""
    merged = dict(settings)
    for name, change in changes.items():
        before = settings.get(name)
        both = isinstance(before, dict) and isinstance(change, dict)
        merged[name] = {**before, **change} if both else change
    return RunConfig.model_validate({**merged, "output": str(output)})


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder: when it was written, in nanoseconds, and its size."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in files
    }


def contents(folder: Path, *parts: str) -> dict[str, bytes]:
    """The bytes of every file below some sub-folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for part in parts
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }
