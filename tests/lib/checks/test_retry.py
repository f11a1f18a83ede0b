"""Rejected prompts can be retried alone; reasons that a retry cannot change are errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rudalle_lib.checks.retry import (
    FINAL_REASONS,
    NOT_SELECTED,
    TABLE_REASONS,
    check_reason,
    reopen_rejected,
)
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.lease import hold
from rudalle_lib.errors import ConfigError, LeaseError
from rudalle_lib.images.codecs import encode_image
from rudalle_lib.schema.records import REASONS
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import Event, Step, listener
from tests.support.finished_run import finish, tiny_config
from tests.support.tiny_run import contents
from tests.support.tiny_stack import SIDE


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Three prompts; the image prompt of the second one does not exist yet."""
    table = (
        "prompt,image_prompt,image_prompt_borders\n"
        "чёрный квадрат,,\n"
        f"красный круг,{tmp_path / 'image.png'},up=1\n"
        "a red circle,,\n"
    )
    return tiny_config(tmp_path, str(tmp_path / "out"), table).model_copy(
        update={"prompts": tiny_config(tmp_path, "x", table).prompts.model_copy(
            update={"shard_size": 3}
        )}
    )  # fmt: skip


def write_image_prompt(folder: Path) -> None:
    pixels = torch.arange(3 * SIDE * SIDE).view(3, SIDE, SIDE).remainder(251).to(torch.uint8)
    (folder / "image.png").write_bytes(encode_image(pixels))


def test_only_rejected_prompts_are_drawn_and_the_dataset_is_that_of_a_fresh_run(
    config: RunConfig, tmp_path: Path, output_url: str
) -> None:
    config = config.model_copy(update={"output": output_url})
    before = finish(config).totals
    assert before.rejected["bad_image_prompt"] == 1 and before.images == 4
    write_image_prompt(tmp_path)
    reopened = reopen_rejected(Storage(config.output), "bad_image_prompt", 60)
    assert (reopened.prompts, reopened.shards) == (1, (0,))

    steps: list[Event] = []
    token = listener.set(steps.append)
    try:
        after = finish(config).totals
    finally:
        listener.reset(token)
    totals = {step.total for step in steps if isinstance(step, Step) and step.stage == "generate"}
    assert totals == {4 * 16}  # tokens of one prompt's images
    assert after.images == 8 and "bad_image_prompt" not in after.rejected

    fresh = config.model_copy(update={"output": str(tmp_path / "fresh")})
    finish(fresh)
    retried = Storage(output_url)
    paths = [*retried.list("data"), *retried.list("rejects")]
    files = {path: retried.read_bytes(path) for path in paths}
    assert files == contents(tmp_path / "fresh", "data", "rejects")


def test_a_prompt_that_fails_again_is_rejected_again(config: RunConfig) -> None:
    before = finish(config)
    rejects = contents(Path(config.output), "rejects")
    reopened = reopen_rejected(Storage(config.output), "translation_failed", 60)
    assert reopened.prompts == 1
    after = finish(config)
    assert after.totals.rejected == before.totals.rejected
    assert contents(Path(config.output), "rejects") == rejects  # with the same details
    assert after.totals.images == before.totals.images


def test_a_retry_that_was_killed_can_be_repeated(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(config)
    write_image_prompt(tmp_path)
    storage = Storage(config.output)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reopen_rejected(storage, "bad_image_prompt", 60)
    assert finish(config).totals.images == 4  # the shard still counts as finished
    assert reopen_rejected(storage, "bad_image_prompt", 60).shards == (0,)
    assert finish(config).totals.images == 8


def test_nothing_is_reopened_if_nothing_was_rejected(config: RunConfig) -> None:
    finish(config)
    assert reopen_rejected(Storage(config.output), "too_long", 60).shards == ()


def test_an_output_that_a_run_is_writing_to_is_an_error(config: RunConfig) -> None:
    finish(config)
    storage = Storage(config.output)
    with hold(storage, 60), pytest.raises(LeaseError, match="Another run writes"):
        reopen_rejected(storage, "translation_failed", 60)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        *((reason, "correct the prompt table and run again") for reason in TABLE_REASONS),
        *(
            (reason, "change score.min_score, score.keep_best or select.rules")
            for reason in NOT_SELECTED
            if reason != "by_hand"
        ),
        ("by_hand", "change their rows in curation.csv"),
        ("unsafe", "change publish.blocked_words or score.max_unsafe and run"),
        ("nonsense", "There is no reason 'nonsense': expected one of bad_override"),
    ],
)
def test_reasons_that_a_retry_cannot_change_are_errors(reason: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_reason(reason)
    for other in set(REASONS) - set(FINAL_REASONS):
        check_reason(other)
