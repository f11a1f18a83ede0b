"""The row of a scored image, in the artifacts of the score stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """How well one candidate shows its prompt."""

    image_id: Annotated[str, "Image id"]
    prompt_id: Annotated[str, "Prompt id"]
    score: Annotated[float, pa.float32(), "Cosine of ruCLIP's text and image features"]
    rank: Annotated[int, pa.int32(), "Rank by score within the prompt; 1 is best"]
    probability: Annotated[
        float | None, pa.float32(), "Probability of the prompt among score.negative_texts"
    ] = None
    unsafe: Annotated[float | None, pa.float32(), "Highest cosine with score.unsafe_texts"] = None
    measures: Annotated[
        Mapping[str, float], pa.map_(pa.string(), pa.float32()), "Values of score.probes by name"
    ] = field(default_factory=dict)
    second_score: Annotated[
        float | None, pa.float32(), "Cosine of text and image features of score.second_model"
    ] = None
    embedding: Annotated[
        bytes | None, "Unit-length image features of ruCLIP, float16, little-endian"
    ] = None
    phash: Annotated[str | None, "Perceptual hash of the image, 64 bits in hex"] = None
    translation_similarity: Annotated[
        float | None, pa.float32(), "Cosine of ruCLIP's features of the prompt and its translation"
    ] = None
