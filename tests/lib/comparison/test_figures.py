"""The figures of a dataset are those of its manifests and tables, in any form and storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.comparison.figures import NO_VALUE, read_figures
from rudalle_lib.comparison.sample import HASHES
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.dataset.manifests import require_run_manifest
from rudalle_lib.errors import ConfigError, StorageError
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish


def test_figures_are_those_of_the_run(finished: RunConfig) -> None:
    storage = Storage(finished.output)
    run, images = require_run_manifest(storage), read_images(finished.output)
    found = read_figures(storage, by="theme")
    assert (found.whole.prompts, found.whole.drawn) == (run.totals.prompts, run.totals.images)
    assert found.whole.kept == run.totals.kept == len(images)
    assert found.whole.mean_score == pytest.approx(images["score"].mean())
    assert found.whole.acceptance == pytest.approx(run.totals.kept / run.totals.images)
    by_theme = images.groupby("theme")["score"]
    assert set(found.groups) == {"malevich", "colour", "english"}
    for theme in ("malevich", "colour"):
        assert found.groups[theme].kept == by_theme.count()[theme]
        assert found.groups[theme].mean_score == pytest.approx(by_theme.mean()[theme])
    english = found.groups["english"]
    assert (english.prompts, english.drawn, english.acceptance) == (1, 0, None)
    assert found.sample.images == len(images) and found.sample.method == HASHES
    assert found.seconds == pytest.approx(3600 * run.usage.device_hours / len(images))
    assert found.cost is None
    assert read_figures(storage).groups == {}


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_archives_give_the_same_figures(config: RunConfig, form: str) -> None:
    before = read_figures(Storage(config.output), by="theme")
    publish = config.publish.model_copy(update={"format": form})
    finish(config.model_copy(update={"publish": publish}))
    after = read_figures(Storage(config.output), by="theme")
    assert (after.whole, after.groups, after.sample) == (before.whole, before.groups, before.sample)


def test_a_column_that_nobody_gave_is_named(finished: RunConfig) -> None:
    with pytest.raises(
        ConfigError, match=r"column 'them' \(did you mean theme\?\): expected theme"
    ):
        read_figures(Storage(finished.output), by="them")


def test_prompts_of_a_table_without_the_column_are_a_group(
    config: RunConfig, tmp_path: Path
) -> None:
    table = tmp_path / "more.csv"
    table.write_text("prompt\nбелый квадрат\n", encoding="utf-8")
    prompts = config.prompts.model_copy(update={"uri": str(table)})
    finish(config.model_copy(update={"prompts": prompts}))
    groups = read_figures(Storage(config.output), by="theme").groups
    assert set(groups) == {"malevich", "colour", "english", NO_VALUE}
    assert (groups[NO_VALUE].prompts, groups[NO_VALUE].drawn) == (1, 4)


def test_an_output_without_a_finished_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no finished run in"):
        read_figures(Storage(str(tmp_path)))
