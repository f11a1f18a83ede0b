"""The translate stage: every prompt in Russian, the language that the decoder reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rudalle_lib.schema.records import Prompt, Reject, TranslationRecord
from rudalle_lib.text.translation import Translation, Translator, in_russian, language_of


def needs_translator(prompts: Sequence[Prompt], setting: str, source: str) -> bool:
    """Whether a prompt is in the language that the translator reads.

    Args:
        prompts: accepted rows of a prompt table.
        setting: `translate.language` of the run.
        source: code of the language that the translator reads.
    """
    return source in _languages(prompts, setting, source)


def translate_prompts(
    prompts: Sequence[Prompt],
    setting: str,
    source: str,
    translator: Translator | None,
    batch_size: int = 32,
) -> tuple[list[TranslationRecord], dict[str, Reject]]:
    """Translate the prompts that are in the translator's language; keep those in Russian.

    Args:
        prompts: accepted rows of a prompt table.
        setting: `translate.language` of the run.
        source: code of the language that the translator reads.
        translator: may be None if no prompt needs it (`needs_translator`).
        batch_size: texts translated at once.

    Returns:
        A row per prompt, in order, and a reject by prompt id for each one without a translation.
    """
    languages = _languages(prompts, setting, source)
    spoken = list(zip(prompts, languages, strict=True))
    foreign = [prompt.text for prompt, language in spoken if language == source]
    translated: dict[str, Translation] = {}
    if foreign and translator is not None:
        answers = translator.translations(foreign, source, batch_size)
        translated = dict(zip(foreign, answers, strict=True))
    records: list[TranslationRecord] = []
    rejects: dict[str, Reject] = {}
    for prompt, language in spoken:
        answer = in_russian(prompt.text, language, source, translated)
        unknown = " ".join(answer.unknown_words) or None
        records.append(
            TranslationRecord(
                prompt.prompt_id, prompt.text, language, answer.text, answer.confidence, unknown
            )
        )
        if answer.text is None:
            detail = f"not translated from {language!r}: {answer.fault}; give it in Russian"
            rejects[prompt.prompt_id] = Reject("translation_failed", detail)
    return records, rejects


def translated_pairs(rows: Iterable[TranslationRecord]) -> dict[str, tuple[str, str]]:
    """The prompts that were translated: as given and in Russian, by prompt id."""
    return {
        row.prompt_id: (row.text, row.text_ru) for row in rows if row.text_ru and row.lang != "ru"
    }


def _languages(prompts: Sequence[Prompt], setting: str, source: str) -> list[str]:
    return [language_of(prompt.lang, prompt.text, setting, source) for prompt in prompts]
