"""Blocked words are found as people read them, but not inside longer words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.prompts.plan import plan_run, read_shard
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import RejectRecord
from rudalle_lib.storage.storage import Storage
from rudalle_lib.text.blocked_words import find_blocked_word
from tests.support.finished_run import finish, tiny_config

BLOCKED = ("кров*", "чёрный крест", "gun", "hand grenade*")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("пятна КРОВИ на снегу", "кров*"),
        ("черный, крест", "чёрный крест"),
        ("ЧЕ\u0308РНЫЙ КРЕСТ", "чёрный крест"),
        ("к\u200bровь", "кров*"),
        ("к\u0336ровь", "кров*"),
        ("a \uff27\uff35\uff2e", "gun"),
        ("two hand-grenades", "hand grenade*"),
        ("a machine gun.", "gun"),
        ("красный круг", None),
        ("покров и шкура", None),
        ("чёрный большой крест", None),
        ("gunpowder, begun", None),
        ("a grenade in a hand", None),
        ("", None),
    ],
)
def test_a_word_is_found_as_it_is_read(text: str, word: str | None) -> None:
    expected = None if word is None else ("unsafe", f"publish.blocked_words keeps out {word!r}")
    assert find_blocked_word(BLOCKED, text) == expected
    assert find_blocked_word(BLOCKED, None, text) == expected
    assert find_blocked_word((), text) is None


@pytest.mark.parametrize("entry", ["", "*", "a*b", "кров**", "!", "кровь *", "a."])
def test_an_entry_without_a_word_is_an_error(entry: str) -> None:
    with pytest.raises(ConfigError, match="expected words or phrases"):
        RunConfig.parse(json.dumps({"publish": {"blocked_words": [entry]}}))


def test_new_prompts_are_not_planned_and_planned_ones_are_not_published(tmp_path: Path) -> None:
    """No network runs again, and the change can be undone."""
    config = tiny_config(tmp_path, str(tmp_path / "out"))
    before, storage = finish(config).totals, Storage(config.output)
    tokens = {path: storage.read_bytes(path) for path in storage.list("stages/generate")}

    blocked = config.publish.model_copy(update={"blocked_words": ("крест*", "чёрный квадрат")})
    strict = config.model_copy(update={"publish": blocked})
    after = finish(strict).totals
    assert after.rejected["unsafe"] == 7  # three drawings of a square, four of a cross
    assert 0 < after.kept < before.kept and after.images == before.images
    texts = {
        text
        for path in storage.list("data/metadata")
        for text in storage.read_table(path, ["text"]).column(0).to_pylist()
    }
    assert texts and not any("крест" in text or "квадрат" in text for text in texts)
    assert {path: storage.read_bytes(path) for path in storage.list("stages/generate")} == tokens
    assert finish(config).totals.kept == before.kept

    fresh = strict.model_copy(update={"output": str(tmp_path / "fresh")})
    plan = plan_run(fresh, Storage(fresh.output))
    assert plan.rejected["unsafe"] == 2 and plan.prompts == 3
    planned = [p.text for shard in plan.shards for p in read_shard(Storage(fresh.output), shard)]
    assert not any("крест" in text or "квадрат" in text for text in planned)
    (path,) = (p for p in Storage(fresh.output).list("rejects") if "plan-" in p)
    rows = from_table(Storage(fresh.output).read_table(path), RejectRecord)
    assert {row.text for row in rows if row.reason == "unsafe"} == {
        "чёрный квадрат на белом фоне", "синий крест на бежевом фоне",
    }  # fmt: skip
