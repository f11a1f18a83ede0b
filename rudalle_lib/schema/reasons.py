"""Reason codes: why prompts and images are not published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

Reason = Literal[
    "empty_prompt",
    "bad_type",
    "bad_override",
    "bad_prompt_id",
    "bad_image_prompt",
    "too_long",
    "duplicate",
    "translation_failed",
    "below_threshold",
    "not_in_best_k",
    "same_image",
    "near_duplicate",
    "outside_limits",
    "uncertain_translation",
    "decode_error",
    "unsafe",
    "by_hand",
    "not_in_best_share",
    "group_full",
    "over_budget",
]
"""Why a prompt or an image was not published."""

REASONS: tuple[str, ...] = get_args(Reason)
"""All reason codes."""


SELECTION_REASONS: Mapping[str, str] = {
    "below_threshold": "score",
    "not_in_best_k": "score",
    "same_image": "score",
    "near_duplicate": "score",
    "outside_limits": "score",
    "unsafe": "score",
    "by_hand": "select",
    "not_in_best_share": "select",
    "group_full": "select",
    "over_budget": "select",
}
"""Why an image that was drawn and scored is not kept, and the section that decided so."""


def stage_of(reason: Reason) -> str:
    """What a reject names as the stage that rejected an image that was scored."""
    return SELECTION_REASONS[reason]


class Reject(NamedTuple):
    """Why a prompt or an image is not published: a reason code and an explanation for people."""

    reason: Reason
    detail: str


REJECT_TEXT_LENGTH = 500
"""Most characters of the text that a reject keeps, enough to recognise the row."""
