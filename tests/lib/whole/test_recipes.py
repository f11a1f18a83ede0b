"""Every recipe is a valid configuration with existing models, and explains its choices."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli.options import packaged_configs
from rudalle_lib import registry
from rudalle_lib.config.run import RunConfig
from rudalle_lib.pipeline.stages import stage_models
from rudalle_lib.prompts.rows import read_prompts

FOLDER = Path(__file__).resolve().parents[3] / "configs"
RECIPES = packaged_configs()


def test_every_current_published_decoder_has_a_recipe() -> None:
    used = {RunConfig.load(str(FOLDER / f"{name}.yaml")).generate.model for name in RECIPES}
    assert used == set(registry.names("decoder")) - {"malevich-v2"}
    assert {"demo", "malevich", "malevich_dwt", "emojich", "surrealist", "kandinsky"} <= set(
        RECIPES
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    config = RunConfig.load(str(FOLDER / f"{name}.yaml"))
    assert stage_models(config).keys() >= {"translate", "generate", "decode", "score"}
    assert config.name == name.replace("_", "-")
    assert config.output.endswith(f"/{config.name}")
    assert config.generate.images >= (config.score.keep_best or 1)
    assert next(iter(read_prompts(config.prompts.uri, config.prompts.columns, 1))) is not None


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_explains_its_choices(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    settings = [line for line in lines if ": " in line and not line.lstrip().startswith("#")]
    explained = [line for line in settings if " # " in line]
    assert len(explained) > 0.4 * len(settings)
    assert all(len(line) <= 110 for line in lines)
