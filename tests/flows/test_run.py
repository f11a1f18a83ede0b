"""A whole run by one call, as scripts and notebooks make it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flows.run import make_dataset
from rudalle_lib import read_run
from rudalle_lib.config.run import RunConfig
from tests.support.tiny_run import configure

pytestmark = pytest.mark.usefixtures("prefect_server")


def count_checks(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Let every check of a run add its configuration to a list."""
    from flows import generate_dataset as flow
    from rudalle_lib.checks import preflight

    checked: list[RunConfig] = []
    check = preflight.check_run

    def count(config: RunConfig) -> dict[str, str]:
        checked.append(config)
        return check(config)

    for module in (flow, preflight):
        monkeypatch.setattr(module, "check_run", count)
    return checked


def test_a_run_is_made_in_a_running_event_loop_and_checked_once(
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Notebooks have a running loop."""
    config = configure(settings, tmp_path / "out", prompts={"limit": 2})
    checked = count_checks(monkeypatch)

    async def cell() -> None:
        run = make_dataset(config)
        assert run == read_run(config.output)
        assert len(run.images()) == run.manifest.totals.kept > 0

    asyncio.run(cell())
    assert checked == [config]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tiny: checking models, prompts and output"
    assert [line for line in lines[1:] if not line.startswith(("2 prompts", "shard 0000"))] == []
