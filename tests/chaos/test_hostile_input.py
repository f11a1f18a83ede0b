"""Hostile tables and configurations: published safely or rejected, clear errors, bounded memory."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import ConfigError, PromptError, RudalleError
from rudalle_lib.prompts.rows import read_prompts
from rudalle_lib.schema.records import REASONS
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, tiny_config

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).resolve().parents[2]

TEXTS: list[Any] = [
    None, "", " \t\n", "\u200b", "\ufeff", 7, 1.5, True, [], {}, ["a"], {"a": 1},
    "x" * 2**20, "круг " * 3_000, "\x00\x01\x1b[31mred", "a\u202eb\u2066c", "مربع أسود",
    "👩‍👩‍👧‍👦🏴‍☠️", "a\u0301\u0302\u0303" * 50, "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg/onload=alert(1)>", "javascript:alert(1)", "{{7*7}}", "${jndi:ldap://x/a}", "$(reboot)",
    "'; DROP TABLE prompts; --", "=cmd|'/C calc'!A0", "@SUM(1+1)", "+1", "-1", "../../etc/passwd",
    "/etc/shadow", "C:\\Windows", "%2e%2e%2f", "a\udcffb", "\ud800", "NaN", "null", "\r\nheader: x",
    "красный круг", "чёрный квадрат на белом фоне",
]  # fmt: skip
IDS: list[Any] = [
    None, "", "../../escape", "/etc/passwd", "..", ".", "a/b", "a\\b", "C:", "x" * 65, "x" * 64,
    "-rf", ".hidden", "con", "a b", "кот", "a\x00b", "<b>", "'; --", 5, -5, 1.5, True, [], {},
    "A", "a", "same", "same", "%00", "~root", "a..b", "\ud800",
]  # fmt: skip
OVERRIDES: dict[str, list[Any]] = {
    "images": [None, 1, 0, -1, 1001, "1", "many", 1e300, True, [], float("inf")],
    "seed": [None, 0, -1, 2**63, 2**70, "7", "0x7", 1.5],
    "top_p": [None, 0.5, 0, 1.1, "nan", "inf", "0.5", {}],
    "temperature": [None, 1, 1e-300, 1e9, -1],
    "width": [None, None, None, 32, 33, 10**6],
    "lang": [None, "ru", "RU_ru", "xx", "english", 5, "<b>", ""],
    "image_prompt": [None, None, None, "/etc/passwd", "http://127.0.0.1:9/x.png", "file:///dev/zero",
                     "a\x00b", "s3://u:p@b/x.png"],
    "image_prompt_borders": [None, None, None, "up=1", "up=999", "sideways=1", 7],
    "note": [None, "<script>alert(2)</script>", "=1+1", {"a": [1]}, "../../x"],
}  # fmt: skip


def hostile_rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows that contain every text and id of the lists above at least once."""
    dice = random.Random(seed)
    for number in range(count):
        row = {
            "prompt": TEXTS[number % len(TEXTS)],
            "prompt_id": IDS[number % len(IDS)],
            "lang": "ru",
        }
        if number >= len(TEXTS):  # unique prompts, so that few rows are duplicates
            row["prompt"] = dice.choice(TEXTS)
            row["prompt_id"] = dice.choice((None, f"id-{number}", dice.choice(IDS)))
            if isinstance(row["prompt"], str) and len(row["prompt"]) < 1000:
                row["prompt"] += str(number)
        for name in dice.sample(sorted(OVERRIDES), dice.choice((0, 0, 1, 2))):
            row[name] = dice.choice(OVERRIDES[name])
        yield row


def test_a_thousand_hostile_rows_are_published_safely_or_rejected(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in hostile_rows(990, 0)]
    lines += ["{", "[]", "7", '"text"', "[" * 100_000, '{"prompt": ' + "9" * 6000 + "}", "nul"]
    content = (
        "\n".join(lines).encode() + b'\n{"prompt": "\xff\xfe"}\n\xff\xff\n{"prompt": "\\ud8"}\n'
    )
    (tmp_path / "prompts.jsonl").write_bytes(content)
    base = tiny_config(tmp_path, str(tmp_path / "out"))
    config = RunConfig.model_validate({
        **base.model_dump(),
        "prompts": {"uri": str(tmp_path / "prompts.jsonl"), "shard_size": 250},
        "generate": {"images": 1, "batch_size": 64},
        "upscale": {"model": None},
    })  # fmt: skip
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    run = finish(config)
    storage = Storage(config.output)
    rejected = sum(run.totals.rejected.values())
    tables = next(iter(run.tables.values()))
    assert tables["rows"] == 1000
    plan_rejects = sum(
        storage.read_table(path).num_rows
        for path in storage.list("rejects") if "plan-" in path
    )  # fmt: skip
    assert run.totals.prompts + plan_rejects == 1000
    assert run.totals.kept > 100 and rejected > 200
    assert set(run.totals.rejected) <= set(REASONS)
    assert audit_output(storage).faults == []
    # No file appears outside the output, and names in it have only harmless characters.
    assert {path for path in tmp_path.rglob("*") if "out" not in path.parts} == before
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")
    assert set("".join(storage.list())) <= allowed
    # Pages contain no markup from prompts.
    for path in storage.list("gallery") + ["README.md"]:
        page = storage.read_bytes(path).decode()
        assert "<script>alert" not in page and "<img src=x" not in page


# --- malformed files ---------------------------------------------------------------------------

MEASURED = """
import resource, sys, time
from rudalle_lib.errors import RudalleError
{load}
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
started = time.monotonic()
try:
    {action}
except RudalleError as error:
    print("error", str(error)[:500])
print("seconds", time.monotonic() - started)
"""


def measured(load: str, action: str, argument: Path, limit: int = 6 * 2**30) -> str:
    """The output of a process with limited memory that reads a file."""
    code = MEASURED.format(load=load, action=action, limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", code, str(argument)], cwd=ROOT, capture_output=True, text=True,
        timeout=240, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_decompression_bomb_is_rejected_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rudalle_lib.prompts.parquet_reader.MAX_COLUMN_BYTES", 2**20)
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"prompt": ["x" * 2**22]}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(PromptError, match="unpacks to 4,.* write the table with smaller row group"):
        list(read_prompts(str(path)))


@pytest.mark.slow
def test_a_decompression_bomb_of_two_gigabytes_is_rejected_in_bounded_memory(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bomb.parquet"
    text = pa.array(["x" * 2**20]).take(pa.array([0] * 1900, pa.int32()))
    table = pa.table({"prompt": text})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=1900)
    assert path.stat().st_size < 10 * 2**20
    output = measured(
        "from rudalle_lib.prompts.rows import read_prompts", "list(read_prompts(sys.argv[1]))", path
    )
    assert "unpacks to" in output


def test_a_table_of_many_equal_rows_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["круг"])
    pq.write_table(pa.table({"prompt": values, "x": pa.nulls(100_000)}), path)
    assert path.stat().st_size < 20_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(1 for _ in read_prompts(str(path), limit=50_000))
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert count == 50_000 and growth < 300_000  # kilobytes


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl", "tsv"])
@pytest.mark.parametrize(
    "magic", [b"PAR1", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x1f\x8b\x08", b""]
)
def test_a_file_of_another_kind_is_one_clear_error(
    tmp_path: Path, ending: str, magic: bytes
) -> None:
    path = tmp_path / f"table.{ending}"
    path.write_bytes(magic + random.Random(0).randbytes(5000))
    started = time.monotonic()
    with pytest.raises(RudalleError) as raised:
        list(read_prompts(str(path)))
    assert str(path) in str(raised.value) and len(str(raised.value)) < 20_000
    assert time.monotonic() - started < 60


def test_a_truncated_table_is_an_error_wherever_it_ends(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    pq.write_table(pa.table({"prompt": [f"круг {n}" for n in range(200)]}), whole)
    content = whole.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        with pytest.raises(PromptError, match="not readable as Parquet"):
            list(read_prompts(str(path)))


# --- configurations ----------------------------------------------------------------------------

KEYS = st.sampled_from([
    "name", "seed", "output", "prompts", "uri", "columns", "shard_size", "limit", "weights",
    "runtime", "devices", "device", "dtype", "generate", "images", "width", "size_unit",
    "templates", "score", "negative_texts", "publish", "image_format", "x", "", "__class__",
])  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["2026-99-99", "0x", "1e999", "s3://u:p@b/x", "~", "{}", "ru", "auto"])
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=4),
    max_leaves=12,
)


def parse_or_config_error(text: str) -> None:
    try:
        RunConfig.parse(text, source="hostile.yaml")
    except ConfigError as error:
        assert len(str(error)) < 20_000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_any_settings_are_a_configuration_or_one_clear_error(tree: dict[str, Any]) -> None:
    parse_or_config_error(json.dumps(tree))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=" \n\t:-{}[]&*!|>'\"%@`#,?0123456789abcxeE.+~\\", max_size=60) | st.text())
def test_any_text_is_a_configuration_or_one_clear_error(text: str) -> None:
    parse_or_config_error(text)


@settings(max_examples=100, deadline=None)
@given(KEYS, KEYS, st.text(max_size=30))
def test_any_override_is_accepted_or_one_clear_error(first: str, second: str, value: str) -> None:
    try:
        RunConfig.parse("", [f"{first}.{second}={value}"])
    except ConfigError as error:
        assert len(str(error)) < 20_000


@pytest.mark.parametrize(
    "text",
    [
        "seed: 2026-99-99",
        "a" * 2_000_000,
        "[" * 5_000,
        "{a: " * 5_000,
        "!!python/object/apply:os.system [echo]",
        "\n".join(f"key{n}: 1" for n in range(4_000)),
        "x" * 900_000 + ": 1",
        "seed: " + "9" * 100_000,
        "? [a]\n: 1",
        "1: 2",
        "\x00",
        "a: &a [*a]",
    ],
)
def test_a_hostile_configuration_is_one_clear_error_within_a_minute(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError) as raised:
        RunConfig.parse(text, source="hostile.yaml")
    assert len(str(raised.value)) < 20_000
    assert time.monotonic() - started < 60


def test_an_endless_configuration_is_an_error() -> None:
    with pytest.raises(RudalleError, match="too large"):
        RunConfig.load("/dev/zero")
