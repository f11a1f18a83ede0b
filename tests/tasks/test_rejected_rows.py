"""Every reject names the row of the prompt table that holds its prompt, whatever rejected it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_rejects
from rudalle_lib.pipeline.stages import stage_models
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.schema.records import REASONS
from rudalle_lib.storage.storage import Storage
from tests.support.tiny_run import configure

ROWS: list[dict[str, str]] = [
    {"prompt": "чёрный квадрат"},
    {"prompt": " "},
    {"prompt": "красный круг", "top_p": "9"},
    {"prompt": "синий крест", "prompt_id": "a/b"},
    {"prompt": "чёрный квадрат"},
    {"prompt": "злое слово"},
    {"prompt": "круг " * 20},
    {"prompt": "ein rotes Quadrat", "lang": "de"},
    {"prompt": "белая полоса", "height": "1"},
    {"prompt": "жёлтый круг", "image_prompt": "missing.png", "image_prompt_borders": "up=1"},
    {"prompt": "серый треугольник"},
]
"""Two prompts that are drawn, and one for each way in which a prompt is rejected."""

EXPECTED = {
    *("empty_prompt", "bad_override", "bad_prompt_id", "duplicate", "unsafe", "too_long"),
    *("translation_failed", "bad_image_prompt", "not_in_best_k"),
}
COLUMNS = list(dict.fromkeys(name for row in ROWS for name in row))
Rows = Sequence[Mapping[str, str]]


def write_csv(path: Path, rows: Rows) -> str:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_json_lines(path: Path, rows: Rows) -> str:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: Rows) -> str:
    pd.DataFrame(list(rows), columns=COLUMNS).to_parquet(path)
    return str(path)


def write_parts(folder: Path, rows: Rows) -> str:
    folder.mkdir()
    for number, start in enumerate(range(0, len(rows), 4)):
        write_csv(folder / f"part-{number}.csv", rows[start : start + 4])
    return str(folder)


FORMS = {
    "t.csv": write_csv,
    "t.jsonl": write_json_lines,
    "t.parquet": write_parquet,
    "t": write_parts,
}


def read_rows(file: str) -> list[dict[str, str | None]]:
    """The rows of a file, with its numbers of rows as places, as a user finds them."""
    if file.endswith(".parquet"):
        frame = pd.read_parquet(file)
        return [
            {name: value or None for name, value in row.items()} for row in frame.to_dict("records")
        ]
    if file.endswith(".jsonl"):
        return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    with open(file, encoding="utf-8", newline="") as stream:
        return [dict(row) for row in csv.DictReader(stream)]


def make(settings: dict[str, object], output: Path, table: str) -> RunConfig:
    """Run all stages over shards of two prompts, without Prefect."""
    from tasks.without_prefect import process_shard

    config = configure(settings, output, prompts={"uri": table, "shard_size": 2})
    weights = dict.fromkeys(stage_models(config), "weights")
    for shard in plan_run(config, Storage(config.output)).shards:
        process_shard(config, weights, shard)
    return config


@pytest.mark.parametrize("form", FORMS)
def test_every_reject_names_the_row_with_its_prompt(
    form: str, tiny_stack: Path, tmp_path: Path
) -> None:
    settings: dict[str, object] = {
        "weights": {"folder": str(tiny_stack), "offline": True},
        "runtime": {"devices": "cpu"},
        "generate": {"images": 2, "allow_truncation": False},
        "score": {"keep_best": 1},
        "publish": {"blocked_words": ["злое"]},
    }
    config = make(settings, tmp_path / "out", FORMS[form](tmp_path / form, ROWS))
    rejects = read_rejects(config.output)
    assert set(rejects["reason"]) == EXPECTED and set(REASONS) >= EXPECTED
    named = []
    for row in rejects.to_dict("records"):
        number = int(row["source_row"])
        found = read_rows(row["source_table"])[number - 1]
        assert " ".join((found["prompt"] or "").split()) == (row["text"] or "").strip()
        whole = f"row {number} of {row['source_table']}: "
        assert row["detail"].startswith(whole) == (not isinstance(row["image_id"], str))
        named.append((row["source_table"], number))
    assert len(set(named)) == len(ROWS)  # those that were drawn have a rejected image each
