"""The row of a prompt or an image that is not published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa

from rudalle_lib.schema.arrow import Later
from rudalle_lib.schema.reasons import REJECT_TEXT_LENGTH, Reason
from rudalle_lib.schema.scores import ScoreRecord
from rudalle_lib.schema.table_rows import TableRow


@dataclass(frozen=True, slots=True)
class RejectRecord:
    """A prompt (`image_id` is None) or an image that was not published, and why; pass-through
    columns follow.
    """

    prompt_id: Annotated[str | None, "Prompt id; null if the row has no valid one"]
    image_id: Annotated[str | None, "Image id; null if the whole prompt was rejected"]
    text: Annotated[str | None, f"Prompt, its first {REJECT_TEXT_LENGTH} characters"]
    stage: Annotated[str, "Stage that rejected it"]
    reason: Annotated[str, "Reason code"]
    detail: Annotated[str, "Explanation: what was expected, what was found, where"]
    text_ru: Annotated[str | None, Later(), "Prompt in Russian, if it was translated"] = None
    score: Annotated[float | None, pa.float32(), Later(), "Score of the image, if any"] = None
    rank: Annotated[int | None, pa.int32(), Later(), "Rank within the prompt; 1 is best"] = None
    source_table: Annotated[
        str | None, Later(), "File of the prompt table that holds the prompt; null if unknown"
    ] = None
    source_row: Annotated[
        int | None, pa.int64(), Later(), "Number of the prompt's row in that file, from 1"
    ] = None


def reject(
    reason: Reason,
    detail: str,
    *,
    stage: str,
    prompt_id: str | None = None,
    image_id: str | None = None,
    text: str | None = None,
    text_ru: str | None = None,
    score: ScoreRecord | None = None,
    row: TableRow | None = None,
) -> RejectRecord:
    """A `RejectRecord` whose texts are cut to `REJECT_TEXT_LENGTH` characters.

    The detail of a whole prompt begins with its `row`, if that is known.
    """
    texts = [None if one is None else one[:REJECT_TEXT_LENGTH] for one in (text, text_ru)]
    known = (None, None) if score is None else (score.score, score.rank)
    source = (None, None) if row is None else (row.table, row.number)
    if row is not None and image_id is None:
        detail = f"{row}: {detail}"
    return RejectRecord(
        prompt_id, image_id, texts[0], stage, reason, detail, texts[1], *known, *source
    )
