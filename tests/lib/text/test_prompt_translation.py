"""The translate stage: Russian prompts are kept, others are translated or rejected."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.schema.records import Prompt, TranslationRecord
from rudalle_lib.text.confidence import find_uncertain
from rudalle_lib.text.prompt_translation import (
    needs_translator,
    translate_prompts,
    translated_pairs,
)
from rudalle_lib.text.translation import Translator
from rudalle_lib.weights.loading import load_translator
from rudalle_lib.weights.marian import load_marian
from tests.support.tiny_marian import PAIRS

RUSSIAN = Prompt("russian", "чёрный квадрат")
GERMAN = Prompt("german", "квадрат", lang="de")


@pytest.fixture(scope="module")
def translator(marian: Path) -> Translator:
    return load_marian(marian)


def test_each_prompt_gets_one_row_in_order(translator: Translator) -> None:
    english = [Prompt(f"english-{n}", text) for n, (text, _) in enumerate(PAIRS[:2])]
    prompts = [english[0], RUSSIAN, english[1]]
    records, rejects = translate_prompts(prompts, "auto", "en", translator)
    assert all((record.confidence is None) is (record.lang == "ru") for record in records)
    assert [replace(record, confidence=None, unknown_words=None) for record in records] == [
        TranslationRecord("english-0", PAIRS[0][0], "en", PAIRS[0][1]),
        TranslationRecord("russian", RUSSIAN.text, "ru", RUSSIAN.text),
        TranslationRecord("english-1", PAIRS[1][0], "en", PAIRS[1][1]),
    ]
    assert rejects == {}


def test_equal_texts_get_equal_translations(translator: Translator) -> None:
    prompts = [Prompt(name, PAIRS[0][0]) for name in "ab"]
    records, _ = translate_prompts(prompts, "auto", "en", translator)
    assert [record.text_ru for record in records] == [PAIRS[0][1]] * 2


def test_a_prompt_in_a_language_that_the_translator_cannot_read_is_rejected(
    translator: Translator,
) -> None:
    (record,), rejects = translate_prompts([GERMAN], "auto", "en", translator)
    assert (record.lang, record.text_ru) == ("de", None)
    reason, detail = rejects["german"]
    assert reason == "translation_failed"
    assert detail == "not translated from 'de': the translator reads 'en'; give it in Russian"


def test_a_bad_translation_is_rejected_and_the_other_prompts_are_kept(tiny_stack: Path) -> None:
    """A network with random weights never ends a translation."""
    translator = load_translator("demo-marian", WeightsConfig(folder=str(tiny_stack), offline=True))
    prompts = [Prompt("english", "a red circle"), RUSSIAN]
    records, rejects = translate_prompts(prompts, "auto", "en", translator)
    assert [record.text_ru for record in records] == [None, RUSSIAN.text]
    assert "never ends" in rejects["english"].detail


@pytest.mark.parametrize(
    ("prompts", "setting", "needed"),
    [
        ([], "auto", False),
        ([RUSSIAN, GERMAN], "auto", False),
        ([RUSSIAN, Prompt("x", "a red circle")], "auto", True),
        ([RUSSIAN], "en", True),
        ([Prompt("x", "a red circle", lang="ru")], "en", False),
    ],
)
def test_a_translator_is_needed_only_for_prompts_in_its_language(
    prompts: list[Prompt], setting: str, needed: bool
) -> None:
    assert needs_translator(prompts, setting, "en") is needed
    if not needed:
        records, _ = translate_prompts(prompts, setting, "en", None)
        assert [record.prompt_id for record in records] == [prompt.prompt_id for prompt in prompts]


def test_a_translator_of_another_language_reads_that_language(
    tiny_stack: Path, tmp_path: Path
) -> None:
    """Its weights are in a folder with the name of its repository, as downloaded from the hub."""
    shutil.copytree(tiny_stack / "demo-marian", tmp_path / "opus-mt-de-ru")
    tensors = load_file(tiny_stack / "demo-marian" / "model.safetensors")
    torch.save(tensors, tmp_path / "opus-mt-de-ru" / "pytorch_model.bin")
    weights = WeightsConfig(folder=str(tmp_path), offline=True)
    source, _ = registry.get("opus-mt-de-ru", "translator").languages
    translator = load_translator("opus-mt-de-ru", weights)
    prompts = [Prompt("latin", "a red circle"), GERMAN, RUSSIAN]
    records, rejects = translate_prompts(prompts, "auto", source, translator)
    assert [record.lang for record in records] == ["de", "de", "ru"], (
        "Latin script counts as German"
    )
    assert set(rejects) == {"latin", "german"}
    assert all("never ends" in reject.detail for reject in rejects.values())


def test_an_uncertain_translation_is_rejected_with_its_figures() -> None:
    row = TranslationRecord("a", "a fluffy cat", "en", "круг", -1.25, "fluffy cat")
    assert find_uncertain(row, -0.5) == (
        "uncertain_translation",
        "confidence -1.250 is below min_confidence -0.500; the translator hardly knows: fluffy cat",
    )
    assert find_uncertain(row, -1.25) is None and find_uncertain(row, None) is None
    assert find_uncertain(replace(row, confidence=None), -0.5) is None


def test_only_what_was_translated_is_a_pair() -> None:
    rows = [
        TranslationRecord("a", "a circle", "en", "круг"),
        TranslationRecord("b", "круг", "ru", "круг"),
        TranslationRecord("c", "a cat", "en", None),
    ]
    assert translated_pairs(rows) == {"a": ("a circle", "круг")}
