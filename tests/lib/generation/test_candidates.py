"""Seed and settings of a candidate: those of the prompt take precedence over those of the run."""

from __future__ import annotations

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.generation.candidates import candidates_of
from rudalle_lib.generation.sampling import SamplingSettings
from rudalle_lib.generation.seeds import image_seed
from rudalle_lib.schema.records import Overrides, Prompt

SECTION = GenerateConfig(images=2, temperature=1.0, top_k=0, top_p=0.9)


def test_each_replica_has_its_own_id_and_seed() -> None:
    found = list(candidates_of([Prompt("a", "x"), Prompt("b", "y")], SECTION, run_seed=7))
    assert [c.image_id for c in found] == ["a-000", "a-001", "b-000", "b-001"]
    assert [c.seed for c in found] == [image_seed(7, c.prompt_id, c.replica) for c in found]
    assert {c.settings for c in found} == {SamplingSettings(1.0, 0, 0.9)}


def test_an_override_replaces_the_setting_of_the_run_even_with_zero() -> None:
    overrides = Overrides(images=1, seed=0, temperature=0.5, top_k=3, top_p=1.0)
    (found,) = candidates_of([Prompt("a", "x", overrides=overrides)], SECTION, run_seed=7)
    assert found.seed == image_seed(0, "a", 0)
    assert found.settings == SamplingSettings(0.5, 3, 1.0)


def test_a_seed_does_not_depend_on_other_prompts() -> None:
    alone = list(candidates_of([Prompt("b", "y")], SECTION, run_seed=7))
    among = list(candidates_of([Prompt("a", "x"), Prompt("b", "y")], SECTION, run_seed=7))
    assert among[2:] == alone
