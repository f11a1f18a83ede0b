"""Which translations are too uncertain to draw. Imports no torch, because `plan` asks, too."""

from __future__ import annotations

from collections.abc import Iterable

from rudalle_lib.schema.records import Reason, Reject, TranslationRecord

UNCERTAIN: Reason = "uncertain_translation"
"""The reason of prompts whose translation is too uncertain."""


def find_uncertain(row: TranslationRecord, min_confidence: float | None) -> Reject | None:
    """Why a prompt's translation is too uncertain to draw images of it; None if it is not.

    Translations without a confidence, those of earlier versions, are never rejected.
    """
    found = row.confidence
    if min_confidence is None or found is None or found >= min_confidence:
        return None
    unknown = f"; the translator hardly knows: {row.unknown_words}" if row.unknown_words else ""
    detail = f"confidence {found:.3f} is below min_confidence {min_confidence:.3f}{unknown}"
    return Reject(UNCERTAIN, detail)


def find_all_uncertain(
    rows: Iterable[TranslationRecord], min_confidence: float | None
) -> dict[str, Reject]:
    """The prompts whose translation is too uncertain, by prompt id; see `find_uncertain`."""
    found = {row.prompt_id: find_uncertain(row, min_confidence) for row in rows}
    return {name: why for name, why in found.items() if why is not None}
