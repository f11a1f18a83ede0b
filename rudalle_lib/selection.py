"""Which scored images are kept: a least score, and the best few of each prompt.

Selection reads only scores, so changing it runs no network again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rudalle_lib.records import RejectRecord, ScoreRecord, reject


@dataclass(frozen=True)
class Selection:
    """The kept images in the order they came, and a reject for every other one."""

    kept: tuple[ScoreRecord, ...]
    rejects: tuple[RejectRecord, ...]


def select(
    scores: Sequence[ScoreRecord],
    texts: Mapping[str, str],
    min_score: float | None = None,
    keep_best: int | None = None,
) -> Selection:
    """Split scored images into kept and rejected ones.

    Args:
        scores: cosine scores in [-1, 1], with the rank of each image within its prompt (1 is best).
        texts: prompt_id -> prompt, for the rejects.
        min_score: the least score that is kept; None keeps any.
        keep_best: how many images of a prompt are kept at most; None keeps all.
    """
    kept, rejects = [], []
    for scored in scores:
        rejected = _reject(scored, texts[scored.prompt_id], min_score, keep_best)
        if rejected is None:
            kept.append(scored)
        else:
            rejects.append(rejected)
    return Selection(tuple(kept), tuple(rejects))


def _reject(
    scored: ScoreRecord, text: str, min_score: float | None, keep_best: int | None
) -> RejectRecord | None:
    place = {"stage": "score", "prompt_id": scored.prompt_id, "image_id": scored.image_id}
    if min_score is not None and not scored.score >= min_score:  # NaN is below any threshold
        detail = f"score {scored.score:.3f}, at least {min_score:.3f} is asked for"
        return reject("below_threshold", detail, text=text, **place)
    if keep_best is not None and scored.rank > keep_best:
        detail = f"rank {scored.rank} by score {scored.score:.3f}, the best {keep_best} are kept"
        return reject("not_in_best_k", detail, text=text, **place)
    return None
