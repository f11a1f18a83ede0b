"""Patterns mean finished outputs, in the order in which they finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rudalle_lib.comparison.earlier import (
    finished_outputs,
    is_pattern,
    newest_two,
    output_before,
)
from rudalle_lib.comparison.outputs import find_outputs
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import require_run_manifest, write_run_manifest
from rudalle_lib.errors import ConfigError
from rudalle_lib.storage.storage import Storage

DAYS = {"daily-1": "2026-07-03", "daily-2": "2026-07-01", "daily-3": "2026-07-02"}


@pytest.fixture
def folder(finished: RunConfig, output_url: str) -> str:
    """A folder with three finished outputs, one of another name, and two that are no outputs."""
    return fill_folder(finished, output_url)


def fill_folder(finished: RunConfig, url: str) -> str:
    run = require_run_manifest(Storage(finished.output))
    for name, day in {**DAYS, "weekly-1": "2026-07-04"}.items():
        write_run_manifest(Storage(f"{url}/{name}"), replace(run, finished=day))
    Storage(f"{url}/daily-4").write_bytes("run.json", b"{}")
    Storage(f"{url}/daily-5").write_bytes("notes.txt", b"mine")
    return url


def names(*outputs: Storage) -> list[str]:
    return [output.url().rpartition("/")[2] for output in outputs]


def test_outputs_are_found_in_the_order_in_which_they_finished(folder: str) -> None:
    pattern = f"{folder}/daily-*"
    assert names(*finished_outputs(pattern)) == ["daily-2", "daily-3", "daily-1"]
    assert names(*newest_two(pattern)) == ["daily-3", "daily-1"]
    last = Storage(f"{folder}/daily-1")
    assert names(output_before(pattern, last)) == ["daily-3"]
    assert names(*find_outputs(pattern, f"{folder}/daily-3")) == ["daily-2", "daily-3"]
    assert names(*find_outputs(pattern, None)) == ["daily-3", "daily-1"]
    assert names(*find_outputs(f"{folder}/daily-2", f"{folder}/weekly-1")) == [
        "daily-2",
        "weekly-1",
    ]
    assert names(*finished_outputs(f"{folder}/daily-[12]")) == ["daily-2", "daily-1"]


def test_what_cannot_be_compared_is_one_sentence(folder: str, tmp_path: Path) -> None:
    def refused(error: type[ConfigError], message: str, before: str, after: str | None) -> None:
        with pytest.raises(error, match=message):
            find_outputs(before, after)

    pattern = f"{folder}/daily-*"
    refused(ConfigError, "is older than .*daily-2", pattern, f"{folder}/daily-2")
    refused(ConfigError, "at least two finished outputs of .*, found 1", f"{folder}/week*", None)
    refused(ConfigError, "Give two outputs, or a pattern", f"{folder}/daily-1", None)
    refused(ConfigError, "Only the first output may be a pattern", f"{folder}/daily-1", pattern)
    refused(ConfigError, "Only the last part of", f"{folder}/*/daily-*", None)
    refused(ConfigError, "found 0", str(tmp_path / "nowhere" / "daily-*"), None)


def test_patterns_of_the_working_directory(
    finished: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fill_folder(finished, str(tmp_path)))
    assert names(*newest_two("daily-*")) == ["daily-3", "daily-1"]


def test_only_wildcards_make_a_pattern() -> None:
    assert is_pattern("s3://b/daily-*") and is_pattern("daily-?") and is_pattern("[ab]")
    assert not is_pattern("s3://b/daily-1")
