"""Which scored images are kept: a least score, and the best few of each prompt.

Selection reads only scores, so changing it runs no network again but the upscaler on images that
are newly let through.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from rudalle_lib.config import ScoreConfig
from rudalle_lib.records import Reason, ScoreRecord


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


def is_kept(scored: ScoreRecord, selection: ScoreConfig) -> bool:
    """Whether an image is published, by `min_score`, `max_unsafe` and `keep_best`."""
    return why_rejected(scored, selection) is None


def why_rejected(scored: ScoreRecord, selection: ScoreConfig) -> tuple[Reason, str] | None:
    """Reason code and the same for people; None if the image is kept."""
    least, best, most = selection.min_score, selection.keep_best, selection.max_unsafe
    if not math.isfinite(scored.score):
        return "below_threshold", "the score is not a number"
    if most is not None and scored.unsafe is not None and scored.unsafe > most:
        detail = f"{scored.unsafe:.3f} alike one of score.unsafe_texts, at most {most:.3f} is kept"
        return "unsafe", detail
    if least is not None and scored.score < least:
        return "below_threshold", f"score {scored.score:.3f}, at least {least:.3f} is asked for"
    if best is not None and scored.rank > best:
        detail = f"place {scored.rank} with score {scored.score:.3f}, the best {best} are kept"
        return "not_in_best_k", detail
    return None
