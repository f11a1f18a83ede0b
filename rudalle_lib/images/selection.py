"""Selection of images: decisions by hand, a minimum score, the best different images of a prompt.

Selection uses only scores and tokens. Changing its settings therefore runs no network again except
the upscaler and the segmenter, on images that were rejected before.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from rudalle_lib.config.scoring import SECOND
from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.digests import digest_of_bytes
from rudalle_lib.images.likeness import find_likeness
from rudalle_lib.schema.decisions import KEEP, ByHand
from rudalle_lib.schema.records import Reject, ScoreRecord, TokensRecord


def rank(prompt_ids: Sequence[str], scores: Sequence[float]) -> list[int]:
    """The rank of each image among those of its prompt; 1 is the highest score.

    Equal scores keep their order; NaN comes last.
    """
    of_prompt: defaultdict[str, list[int]] = defaultdict(list)
    for index, prompt_id in enumerate(prompt_ids):
        of_prompt[prompt_id].append(index)
    ranks = [0] * len(scores)
    for indices in of_prompt.values():
        indices.sort(key=lambda index: (scores[index] != scores[index], -scores[index]))
        for position, index in enumerate(indices, start=1):
            ranks[index] = position
    return ranks


def rank_again(rows: Sequence[ScoreRecord]) -> list[ScoreRecord]:
    """The same scores, each with its rank among those of its prompt that are given."""
    ranks = rank([row.prompt_id for row in rows], [row.score for row in rows])
    return [replace(row, rank=position) for row, position in zip(rows, ranks, strict=True)]


def find_rejects(
    rows: Iterable[ScoreRecord],
    selection: ScoreConfig,
    contents: Mapping[str, str] | None = None,
    by_hand: Mapping[str, ByHand] | None = None,
) -> dict[str, Reject]:
    """Select images by the limits of `selection`, the best of each prompt first.

    An unsafe image, one outside the limits of a measure, one that is the same as or too much like a
    kept image of its prompt, and one that was rejected by hand take no place: the next best image
    moves up. Images that were kept by hand take the first places, whatever their score; only one
    without a score is rejected.

    Args:
        rows: Scores of images.
        selection: The limits.
        contents: By image id, what the image shows: equal for equal images (`contents_of`). Without
            it, all images count as different.
        by_hand: Decisions of people, by image id.

    Returns:
        Why images are rejected, by image id; images that are kept are absent.
    """
    contents, by_hand, scores = contents or {}, by_hand or {}, list(rows)
    rejects: dict[str, Reject] = {}
    places: Counter[str] = Counter()
    taken: dict[tuple[str, str], str] = {}
    kept_of: defaultdict[str, list[ScoreRecord]] = defaultdict(list)
    ranks = rank([row.prompt_id for row in scores], [row.score for row in scores])
    chosen = {row.image_id for row in scores if is_kept_by_hand(row, by_hand)}
    order = sorted(
        zip(ranks, scores, strict=True), key=lambda item: (item[1].image_id not in chosen, item[0])
    )
    for _, row in order:
        shown = (row.prompt_id, contents.get(row.image_id, row.image_id))
        if row.image_id in chosen:
            places[row.prompt_id] += 1
            taken[shown] = row.image_id
            kept_of[row.prompt_id].append(row)
            continue
        why = (
            reject_by_hand(by_hand.get(row.image_id))
            or _reject_unsafe(row, selection)
            or _reject_measured(row, selection)
            or _reject_same(taken.get(shown))
            or find_likeness(row, kept_of[row.prompt_id], selection)
        )
        if why is None:
            places[row.prompt_id] += 1
            why = _reject_low(row.score, places[row.prompt_id], selection)
        if why is None:
            taken[shown] = row.image_id
            kept_of[row.prompt_id].append(row)
        else:
            rejects[row.image_id] = why
    return rejects


def kept(
    rows: Sequence[ScoreRecord],
    selection: ScoreConfig,
    contents: Mapping[str, str] | None = None,
    by_hand: Mapping[str, ByHand] | None = None,
) -> set[str]:
    """The ids of the images that are kept: those that `find_rejects` does not reject."""
    rejects = find_rejects(rows, selection, contents, by_hand)
    return {row.image_id for row in rows} - rejects.keys()


def is_kept_by_hand(row: ScoreRecord, by_hand: Mapping[str, ByHand]) -> bool:
    """Whether somebody has decided to keep an image, and it has a score."""
    decided = by_hand.get(row.image_id)
    return decided is not None and decided.decision == KEEP and math.isfinite(row.score)


def reject_by_hand(decided: ByHand | None) -> Reject | None:
    """The reject of an image that somebody has decided to reject."""
    if decided is None or decided.decision == KEEP:
        return None
    return Reject("by_hand", decided.note or "rejected in curation.csv")


def contents_of(rows: Iterable[TokensRecord]) -> dict[str, str]:
    """What each image shows, by image id: a digest of its tokens and of their arrangement.

    The VQ-GAN makes equal images of equal tokens.
    """
    return {
        row.image_id: digest_of_bytes(np.asarray([row.columns, *row.tokens], np.int32).tobytes())
        for row in rows
    }


def contents_in(tokens: pa.Table) -> dict[str, str]:
    """The same of a table with the columns of `TokensRecord`, without a Python object per token."""
    rows = tokens.column("tokens").combine_chunks()
    if isinstance(rows, pa.ChunkedArray):
        rows = pa.concat_arrays(rows.chunks) if rows.num_chunks else pa.array([], rows.type)
    values = rows.values.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    offsets = rows.offsets.to_numpy()
    columns = tokens.column("columns").to_numpy().astype(np.int32)
    names = tokens.column("image_id").to_pylist()
    return {
        name: digest_of_bytes(
            columns[row].tobytes() + values[offsets[row] : offsets[row + 1]].tobytes()
        )
        for row, name in enumerate(names)
    }


def _reject_unsafe(row: ScoreRecord, selection: ScoreConfig) -> Reject | None:
    limit = selection.max_unsafe
    if limit is None or row.unsafe is None or row.unsafe <= limit:
        return None
    return Reject("unsafe", f"similarity {row.unsafe:.3f} exceeds max_unsafe {limit:.3f}")


def _reject_measured(row: ScoreRecord, selection: ScoreConfig) -> Reject | None:
    """Why an image is outside the limits of a probe or of the second score."""
    values = dict(row.measures)
    if row.second_score is not None:
        values[SECOND] = row.second_score
    for name in sorted({*selection.minimum, *selection.maximum} & values.keys()):
        value = values[name]
        least, most = selection.minimum.get(name), selection.maximum.get(name)
        if least is not None and not value >= least:
            return Reject("outside_limits", f"{name} {value:.3f} is below its minimum {least:.3f}")
        if most is not None and not value <= most:
            return Reject("outside_limits", f"{name} {value:.3f} exceeds its maximum {most:.3f}")
    return None


def _reject_same(twin: str | None) -> Reject | None:
    return (
        None if twin is None else Reject("same_image", f"the same image as {twin}, which is kept")
    )


def _reject_low(score: float, position: int, selection: ScoreConfig) -> Reject | None:
    min_score, keep_best = selection.min_score, selection.keep_best
    if not math.isfinite(score):
        return Reject("below_threshold", "the score is NaN or infinite")
    if min_score is not None and score < min_score:
        return Reject("below_threshold", f"score {score:.3f} is below min_score {min_score:.3f}")
    if keep_best is not None and position > keep_best:
        detail = f"rank {position} with score {score:.3f} exceeds keep_best {keep_best}"
        return Reject("not_in_best_k", detail)
    return None
