"""The configuration and the weights that `run.json` records."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import require_run_manifest
from rudalle_lib.errors import ConfigError, RudalleError
from rudalle_lib.pipeline.recorded_run import current_report, recorded_config, recorded_weights
from rudalle_lib.pipeline.stages import IMAGE_ENCODER, weight_digests
from rudalle_lib.schema.records import RunManifest
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finished_below


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The configuration of a finished run."""
    return finished_below(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def run(config: RunConfig) -> RunManifest:
    return require_run_manifest(Storage(config.output))


def test_the_recorded_run_is_the_run(config: RunConfig, run: RunManifest) -> None:
    storage = Storage(config.output)
    assert recorded_config(storage, run) == config
    assert recorded_weights(run, config) == weight_digests(config)
    assert current_report(storage, config, run.shards_planned) == run
    assert current_report(storage, config, run.shards_planned + 1) is None


def test_a_moved_output_is_found_where_it_is_now(
    config: RunConfig, run: RunManifest, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(config.output, moved)
    found = recorded_config(Storage(str(moved)), run)
    assert found == config.model_copy(update={"output": str(moved)})


def test_settings_of_another_version_are_an_error(config: RunConfig, run: RunManifest) -> None:
    newer = dataclasses.replace(
        run,
        config={**run.config, "telepathy": True},
        versions={**run.versions, "rudalle-flows": "9.9"},
    )
    with pytest.raises(ConfigError, match=r"of rudalle-flows 9.9, .* cannot use it: .*telepathy"):
        recorded_config(Storage(config.output), newer)


def test_the_encoder_of_image_prompts_is_recorded_too(config: RunConfig, run: RunManifest) -> None:
    generate = config.generate.model_copy(update={"image_encoder": "vqgan-f8"})
    changed = config.model_copy(update={"generate": generate})
    with pytest.raises(RudalleError, match="run.json has no digest of vqgan-f8"):
        recorded_weights(run, changed)
    known = dataclasses.replace(run, weights={**run.weights, "vqgan-f8": "digest"})
    assert recorded_weights(known, changed)[IMAGE_ENCODER] == "digest"
