"""The data types of a run, and through them every column and JSON key that is written to disk.

All are frozen dataclasses of plain values. In Parquet a record is a row, as `record_tables` makes
it: the field's type is the column's type, the text beside it the column's description.

Where the records lie (see also `planning`, `manifest`, `shards`):

| record | file |
| --- | --- |
| `PlannedPrompt` and pass-through columns | `plan/<shard>.parquet` |
| `TranslationRecord`, `TokensRecord`, `PictureRecord`, `CutoutRecord`, `ScoreRecord` | `stages/<stage>/<shard>.parquet` |
| `ImageRecord` and pass-through columns | `data/metadata/<shard>.parquet` |
| `RejectRecord` | `rejects/<shard>.parquet`, `rejects/plan-<table>.parquet` |
| `ShardManifest`, `RunManifest` | `shards/<shard>.json`, `run.json` |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args

import pyarrow as pa

from rudalle_lib.run_figures import RunUsage, ScoreSummary

#: Why a prompt or an image was not published.
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
    "decode_error",
    "unsafe",
]
REASONS: tuple[str, ...] = get_args(Reason)

#: The longest text that a reject keeps, in characters: enough to recognise the row by.
REJECT_TEXT_LENGTH = 500


# --- prompts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overrides:
    """Settings of one prompt that replace the run's; None leaves the run's setting."""

    images: Annotated[int | None, pa.int32(), "Candidate images of this prompt"] = None
    seed: Annotated[int | None, pa.int64(), "Seed that replaces the run's"] = None
    temperature: Annotated[float | None, pa.float64(), "Sampling temperature"] = None
    top_k: Annotated[int | None, pa.int32(), "Sample among the k likeliest tokens; 0 is all"] = None
    top_p: Annotated[float | None, pa.float64(), "Sample among the tokens of this mass"] = None
    guidance: Annotated[float | None, pa.float64(), "Push away from the empty text; 1 is off"] = (
        None
    )
    width: Annotated[int | None, pa.int32(), "Width of the canvas, in generate.size_unit"] = None
    height: Annotated[int | None, pa.int32(), "Height of the canvas, in generate.size_unit"] = None
    image_prompt: Annotated[str | None, "URI of a picture to draw on from"] = None
    image_prompt_borders: Annotated[str | None, "What is kept of it, in tokens: up=4 left=2"] = None

    def given(self) -> dict[str, int | float | str]:
        """Only the settings that are given, by name in order."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One accepted row of a prompt table.

    `text` is normalised (NFC, single blanks). `lang` is a lower-case language code or None (to be
    told from the text), `text_ru` the translation once there is one, `extra` the other columns.
    """

    prompt_id: str
    text: str
    lang: str | None = None
    text_ru: str | None = None
    overrides: Overrides = Overrides()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedPrompt:
    """A prompt in a plan file; the columns of `Overrides` and `extra.<name>` columns follow."""

    prompt_id: Annotated[str, "Given, or the digest of text and overrides"]
    text: Annotated[str, "Prompt as given, Unicode-normalised, with single blanks"]
    lang: Annotated[str | None, "Language code as given"]
    content: Annotated[str, "Digest of text and overrides"]


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """A reference to one shard of the plan; `fingerprint` digests what the plan file holds.

    `image_prompts` says whether any of its prompts has one.
    """

    index: int
    plan_uri: str
    rows: int
    fingerprint: str = ""
    image_prompts: bool = False


# --- what stages make --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """How a stage came by its devices: seconds of waiting for them, how many it held, and when it
    gave them back (ISO 8601, UTC). A stage without a network holds none.
    """

    waited: float = 0.0
    devices: int = 0
    until: str = ""


NO_DEVICE = DeviceUse()


@dataclass(frozen=True, slots=True)
class StageArtifact:
    """A reference to what a stage made of a shard; `seconds` is the time that making it took, while
    it held `devices` devices until `until`, for which it had `waited` seconds (see `DeviceUse`).
    """

    uri: str
    fingerprint: str
    rows: int
    seconds: float
    waited: float = 0.0
    devices: int = 0
    until: str = ""


@dataclass(frozen=True, slots=True)
class TranslationRecord:
    """A prompt in the decoder's language."""

    prompt_id: Annotated[str, "Prompt"]
    text: Annotated[str, "Prompt as given"]
    lang: Annotated[str, "Language of the prompt, given or detected"]
    text_ru: Annotated[str | None, "Prompt in Russian; null where the translation failed"]


@dataclass(frozen=True, slots=True)
class TokensRecord:
    """The image tokens of one candidate."""

    image_id: Annotated[str, "Image"]
    prompt_id: Annotated[str, "Prompt"]
    replica: Annotated[int, pa.int32(), "Number of the candidate among those of its prompt"]
    seed: Annotated[int, pa.int64(), "Seed of this image alone"]
    tokens: Annotated[list[int], pa.list_(pa.int32()), "Image tokens, row by row"]
    logprob: Annotated[float, pa.float32(), "Mean log-probability of the image tokens"]
    ppl: Annotated[float, pa.float32(), "Mean perplexity of the image tokens"]
    temperature: Annotated[float, pa.float64(), "Sampling temperature"]
    top_k: Annotated[int, pa.int32(), "Sampled among the k likeliest tokens; 0 is all"]
    top_p: Annotated[float, pa.float64(), "Sampled among the tokens of this mass"]
    truncated: Annotated[bool, "The text was longer than the decoder reads, and was cut"]
    guidance: Annotated[float, pa.float64(), "Push away from the empty text; 1 is off"] = 1.0
    rows: Annotated[int, pa.int32(), "Rows of image tokens"] = 0
    columns: Annotated[int, pa.int32(), "Columns of image tokens"] = 0
    image_prompt: Annotated[str | None, "Picture that was drawn on from, if any"] = None
    image_prompt_borders: Annotated[str | None, "What was kept of it, in tokens"] = None


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """The pixels of one candidate, as drawn or enlarged."""

    image_id: Annotated[str, "Image"]
    prompt_id: Annotated[str, "Prompt"]
    width: Annotated[int, pa.int32(), "Width in pixels"]
    height: Annotated[int, pa.int32(), "Height in pixels"]
    picture: Annotated[bytes | None, "PNG file; null where decoding failed"]


@dataclass(frozen=True, slots=True)
class CutoutRecord(PictureRecord):
    """A picture whose ground is transparent."""

    ground: Annotated[str | None, "How it was found: network or colour; null if opaque"] = None


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """How well one candidate shows its prompt."""

    image_id: Annotated[str, "Image"]
    prompt_id: Annotated[str, "Prompt"]
    score: Annotated[float, pa.float32(), "Cosine of ruCLIP's text and image features"]
    rank: Annotated[int, pa.int32(), "Place by score among the images of its prompt; 1 is best"]
    probability: Annotated[
        float | None, pa.float32(), "Probability of the prompt among score.negative_texts"
    ] = None
    unsafe: Annotated[float | None, pa.float32(), "Best cosine with score.unsafe_texts"] = None


# --- the dataset -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One published image: a row of the dataset's metadata; pass-through columns follow.

    The writer of the dataset fills in `path`, `bytes` and `sha256`.
    """

    image_id: Annotated[str, "Prompt id and replica: <prompt_id>-<replica>"]
    prompt_id: Annotated[str, "Prompt"]
    replica: Annotated[int, pa.int32(), "Number of the candidate among those of its prompt"]
    shard: Annotated[int, pa.int32(), "Shard of the plan that the prompt is in"]
    path: Annotated[str, "File that is or holds the image, relative to the output folder"] = ""
    text: Annotated[str, "Prompt as given"]
    text_ru: Annotated[str, "Prompt in Russian, as the decoder read it"]
    lang: Annotated[str, "Language of the prompt, given or detected"]
    seed: Annotated[int, pa.int64(), "Seed of this image alone"]
    score: Annotated[float, pa.float32(), "Cosine of ruCLIP's text and image features"]
    rank: Annotated[int, pa.int32(), "Place by score among the images of its prompt; 1 is best"]
    probability: Annotated[
        float | None, pa.float32(), "Probability of the prompt among score.negative_texts"
    ] = None
    logprob: Annotated[float, pa.float32(), "Mean log-probability of the image tokens"]
    ppl: Annotated[float, pa.float32(), "Mean perplexity of the image tokens"]
    width: Annotated[int, pa.int32(), "Width in pixels"]
    height: Annotated[int, pa.int32(), "Height in pixels"]
    bytes: Annotated[int, pa.int64(), "Size of the image file"] = 0
    sha256: Annotated[str, "SHA-256 of the image file"] = ""
    temperature: Annotated[float, pa.float64(), "Sampling temperature"]
    top_k: Annotated[int, pa.int32(), "Sampled among the k likeliest tokens; 0 is all"]
    top_p: Annotated[float, pa.float64(), "Sampled among the tokens of this mass"]
    truncated: Annotated[bool, "The text was longer than the decoder reads, and was cut"]
    guidance: Annotated[float, pa.float64(), "Push away from the empty text; 1 is off"] = 1.0
    image_prompt: Annotated[str | None, "Picture that was drawn on from, if any"] = None
    image_prompt_borders: Annotated[str | None, "What was kept of it, in tokens"] = None
    translator: Annotated[str | None, "Translation model; null where none was needed"]
    decoder: Annotated[str, "Decoder model"]
    vqgan: Annotated[str, "VQ-GAN model"]
    scorer: Annotated[str, "Scoring model"]
    upscaler: Annotated[str | None, "Super-resolution model; null where the image is as drawn"]
    segmenter: Annotated[str | None, "Model that found the ground, if one did"] = None
    ground: Annotated[str | None, "How it was found: network or colour; null if opaque"] = None


@dataclass(frozen=True, slots=True)
class RejectRecord:
    """A prompt (`image_id` is None) or an image that was not published, and why."""

    prompt_id: Annotated[str | None, "Prompt; null where the row has no usable id"]
    image_id: Annotated[str | None, "Image; null where the whole prompt was rejected"]
    text: Annotated[str | None, f"Prompt, its first {REJECT_TEXT_LENGTH} characters"]
    stage: Annotated[str, "Stage that rejected it"]
    reason: Annotated[str, "Reason code"]
    detail: Annotated[str, "The same for people: what was expected, what was found, where"]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of the output: path relative to the output folder, size in bytes, SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """What a finished shard holds; written last, so that it exists only if all of it does."""

    index: int
    fingerprint: str
    config_digest: str
    prompts: int
    images: int
    kept: int
    rejected: Mapping[str, int]
    image_bytes: int
    metadata: DataFile
    rejects: DataFile | None
    stages: Mapping[str, StageArtifact]
    finished: str
    archive: DataFile | None = None


@dataclass(frozen=True, slots=True)
class RunTotals:
    """Sums over finished shards: `rejected` by reason, `seconds` of work and `waiting` by stage."""

    shards: int = 0
    prompts: int = 0
    images: int = 0
    kept: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    image_bytes: int = 0
    waiting: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunManifest:
    """What a run was asked to do, with what, and what came of it.

    `tables` says of each prompt table, by its public URL, what its last reading counted: rows, and
    planned prompts that are not in it now.
    """

    name: str
    config: Mapping[str, Any]
    config_digest: str
    weights: Mapping[str, str]
    versions: Mapping[str, str]
    shards_planned: int
    totals: RunTotals
    started: str
    finished: str
    tables: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    usage: RunUsage = RunUsage()
    scores: ScoreSummary | None = None


def image_id(prompt_id: str, replica: int) -> str:
    """The id of a prompt's image: `<prompt_id>-<replica>`, three digits or more."""
    return f"{prompt_id}-{replica:03d}"


def reject(
    reason: Reason,
    detail: str,
    *,
    stage: str,
    prompt_id: str | None = None,
    image_id: str | None = None,
    text: str | None = None,
) -> RejectRecord:
    """A `RejectRecord` whose text is cut to `REJECT_TEXT_LENGTH` characters."""
    shown = text[:REJECT_TEXT_LENGTH] if text is not None else None
    return RejectRecord(prompt_id, image_id, shown, stage, reason, detail)
