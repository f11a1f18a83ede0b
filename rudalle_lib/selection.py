"""Which scored images are kept: a least score, and the best few of each prompt.

Selection reads only scores, so changing it runs no network again but the upscaler on images that
are newly let through.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rudalle_lib.config import ScoreConfig
from rudalle_lib.records import Reason, ScoreRecord

Rejection = tuple[Reason, str]
"""Reason code and the same for people."""


def rank(prompt_ids: Sequence[str], scores: Sequence[float]) -> list[int]:
    """The place of each image among those of its prompt, 1 for the highest score.

    Equal scores keep their order; a score that is not a number comes last.
    """
    of_prompt: defaultdict[str, list[int]] = defaultdict(list)
    for index, prompt_id in enumerate(prompt_ids):
        of_prompt[prompt_id].append(index)
    ranks = [0] * len(scores)
    for indices in of_prompt.values():
        indices.sort(key=lambda index: (scores[index] != scores[index], -scores[index]))
        for place, index in enumerate(indices, start=1):
            ranks[index] = place
    return ranks


def rejections(rows: Iterable[ScoreRecord], selection: ScoreConfig) -> dict[str, Rejection]:
    """Why images are not kept, by their ids; those that are kept are missing.

    An unsafe image takes no place: the next best of its prompt moves up.
    """
    found: dict[str, Rejection] = {}
    safe: list[ScoreRecord] = []
    for row in rows:
        danger = _danger(row, selection)
        if danger is None:
            safe.append(row)
        else:
            found[row.image_id] = danger
    places = rank([row.prompt_id for row in safe], [row.score for row in safe])
    for row, place in zip(safe, places, strict=True):
        weakness = _weakness(row.score, place, selection)
        if weakness is not None:
            found[row.image_id] = weakness
    return found


def kept(rows: Sequence[ScoreRecord], selection: ScoreConfig) -> set[str]:
    """Ids of the images that are published, by `min_score`, `max_unsafe` and `keep_best`."""
    return {row.image_id for row in rows} - rejections(rows, selection).keys()


def _danger(scored: ScoreRecord, selection: ScoreConfig) -> Rejection | None:
    most = selection.max_unsafe
    if most is None or scored.unsafe is None or scored.unsafe <= most:
        return None
    detail = f"{scored.unsafe:.3f} alike one of score.unsafe_texts, at most {most:.3f} is kept"
    return "unsafe", detail


def _weakness(score: float, place: int, selection: ScoreConfig) -> Rejection | None:
    least, best = selection.min_score, selection.keep_best
    if not math.isfinite(score):
        return "below_threshold", "the score is not a number"
    if least is not None and score < least:
        return "below_threshold", f"score {score:.3f}, at least {least:.3f} is asked for"
    if best is not None and place > best:
        return "not_in_best_k", f"place {place} with score {score:.3f}, the best {best} are kept"
    return None
