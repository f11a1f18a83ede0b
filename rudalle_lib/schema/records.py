"""The data types of a run. They define every column and JSON key that is written to disk.

All are frozen dataclasses of plain values. In Parquet a record is a row (see `schema.arrow`): the
type of a field is the type of its column, and the annotated text is the column's description.

| record | file |
| --- | --- |
| `PlannedPrompt` and pass-through columns | `plan/<shard>.parquet` |
| `TranslationRecord`, `TokensRecord`, `PixelsRecord`, `CutoutRecord`, `ScoreRecord` | `stages/<stage>/<shard>.parquet` |
| `ImageRecord` and pass-through columns | `data/metadata/<shard>.parquet` |
| `RejectRecord` | `rejects/<shard>.parquet`, `rejects/plan-<table>.parquet` |
| `ShardManifest`, `RunManifest` | `shards/<shard>.json`, `run.json` |
"""  # noqa: E501

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Annotated, Any, Self

import pyarrow as pa

from rudalle_lib.schema.arrow import Former
from rudalle_lib.schema.decisions import SelectionRecord
from rudalle_lib.schema.lineage import Lineage
from rudalle_lib.schema.reasons import REASONS as REASONS
from rudalle_lib.schema.reasons import REJECT_TEXT_LENGTH as REJECT_TEXT_LENGTH
from rudalle_lib.schema.reasons import Reason as Reason
from rudalle_lib.schema.reasons import Reject as Reject
from rudalle_lib.schema.rejects import RejectRecord as RejectRecord
from rudalle_lib.schema.rejects import reject as reject
from rudalle_lib.schema.scores import ScoreRecord as ScoreRecord
from rudalle_lib.schema.table_rows import TableRow

# --- prompts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overrides:
    """Settings of one prompt that replace the run's; None leaves the run's setting."""

    images: Annotated[int | None, pa.int32(), "Candidate images of this prompt"] = None
    seed: Annotated[int | None, pa.int64(), "Seed that replaces the run's"] = None
    temperature: Annotated[float | None, pa.float64(), "Sampling temperature"] = None
    top_k: Annotated[int | None, pa.int32(), "Sample from the k likeliest tokens; 0: all"] = None
    top_p: Annotated[float | None, pa.float64(), "Sample from this probability mass"] = None
    guidance: Annotated[float | None, pa.float64(), "Classifier-free guidance; 1: off"] = None
    width: Annotated[int | None, pa.int32(), "Width of the canvas, in generate.size_unit"] = None
    height: Annotated[int | None, pa.int32(), "Height of the canvas, in generate.size_unit"] = None
    image_prompt: Annotated[str | None, "URI of an image prompt"] = None
    image_prompt_borders: Annotated[str | None, "Borders kept of it, in tokens: up=4 left=2"] = None

    def given(self) -> dict[str, int | float | str]:
        """The settings that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One accepted row of a prompt table.

    `text` is normalised (NFC, single spaces). `lang` is a lower-case language code, or None to
    detect it. `text_ru` is the translation once there is one. `extra` holds the other columns.
    `row` is where it was when it was planned; None if an earlier version planned it.
    """

    prompt_id: str
    text: str
    lang: str | None = None
    text_ru: str | None = None
    overrides: Overrides = Overrides()
    extra: Mapping[str, Any] = field(default_factory=dict)
    row: TableRow | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """The id, and the row if it is known: "square-001 (row 5 of prompts.csv)"."""
        return self.prompt_id if self.row is None else f"{self.prompt_id} ({self.row})"


@dataclass(frozen=True, slots=True)
class PlannedPrompt:
    """A prompt in a plan file; the columns of `Overrides` and `extra.<name>` columns follow."""

    prompt_id: Annotated[str, "As in the prompt table, else the digest of text and overrides"]
    text: Annotated[str, "Prompt, Unicode-normalised, with single spaces"]
    lang: Annotated[str | None, "Language code as given"]
    content: Annotated[str, "Digest of text and overrides"]
    source_table: Annotated[str | None, "File of the prompt table it was planned from"] = None
    source_row: Annotated[int | None, pa.int64(), "Number of its row in that file, from 1"] = None


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """A reference to one shard of the plan.

    `fingerprint` is a digest of its prompts; `image_prompts` is whether any has an image prompt.
    `origin` is the fingerprint from before rows asked for other numbers of images, if any did.
    `source` says which rows of the prompt table it has (`describe_rows`); empty if unknown.
    """

    index: int
    plan_uri: str
    rows: int
    fingerprint: str = ""
    image_prompts: bool = False
    origin: str = ""
    source: str = ""

    def __str__(self) -> str:
        """The shard and its rows: "shard 00003 (rows 25 to 32 of prompts.csv)"."""
        return f"shard {self.index:05d}" + (f" ({self.source})" if self.source else "")


# --- stages ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """How a stage used devices: seconds that it waited for them, how many it held, and when it
    released them (ISO 8601, UTC). A stage without a network holds none. `batch_rows` is how many
    rows the decoder computed at once (0 if unknown): on a GPU the last bits depend on it. `reused`
    images had been drawn by earlier runs. `device_ids` tell devices apart, which two stages share.
    """

    waited: float = 0.0
    devices: int = 0
    until: str = ""
    batch_rows: int = 0
    reused: int = 0
    device_ids: str = ""


NO_DEVICE = DeviceUse()
"""The device use of a stage without a network."""


@dataclass(frozen=True, slots=True)
class StageArtifact:
    """The output of a stage for a shard, the `seconds` that it took, and all of `DeviceUse`."""

    uri: str
    fingerprint: str
    rows: int
    seconds: float
    waited: float = 0.0
    devices: int = 0
    until: str = ""
    batch_rows: int = 0
    reused: int = 0
    device_ids: str = ""


@dataclass(frozen=True, slots=True)
class TranslationRecord:
    """A prompt in the decoder's language."""

    prompt_id: Annotated[str, "Prompt id"]
    text: Annotated[str, "Prompt as given"]
    lang: Annotated[str, "Language of the prompt, as given or detected"]
    text_ru: Annotated[str | None, "Prompt in Russian; null if the translation failed"]
    confidence: Annotated[
        float | None,
        pa.float32(),
        "Mean log-probability of the translation's tokens, nats; null if there was none to make",
    ] = None
    unknown_words: Annotated[
        str | None, "Words that the translator hardly knows, separated by spaces"
    ] = None


@dataclass(frozen=True, slots=True)
class TokensRecord:
    """The image tokens of one candidate."""

    image_id: Annotated[str, "Image id"]
    prompt_id: Annotated[str, "Prompt id"]
    replica: Annotated[int, pa.int32(), "Number of the candidate within its prompt, from 0"]
    seed: Annotated[int, pa.int64(), "Seed of this image"]
    tokens: Annotated[list[int], pa.list_(pa.int32()), "Image tokens, row by row"]
    logprob: Annotated[float, pa.float32(), "Mean log-probability of the image tokens"]
    ppl: Annotated[float, pa.float32(), "Mean perplexity of the image tokens"]
    temperature: Annotated[float, pa.float64(), "Sampling temperature"]
    top_k: Annotated[int, pa.int32(), "Sampled from the k likeliest tokens; 0: all"]
    top_p: Annotated[float, pa.float64(), "Sampled from this probability mass"]
    truncated: Annotated[bool, "Whether the text was too long for the decoder and was cut"]
    guidance: Annotated[float, pa.float64(), "Classifier-free guidance; 1: off"] = 1.0
    rows: Annotated[int, pa.int32(), "Rows of image tokens"] = 0
    columns: Annotated[int, pa.int32(), "Columns of image tokens"] = 0
    image_prompt: Annotated[str | None, "Image prompt, if any"] = None
    image_prompt_borders: Annotated[str | None, "Borders kept of it, in tokens"] = None


@dataclass(frozen=True, slots=True)
class PixelsRecord:
    """The image file of one candidate, as decoded or enlarged."""

    image_id: Annotated[str, "Image id"]
    prompt_id: Annotated[str, "Prompt id"]
    width: Annotated[int, pa.int32(), "Width in pixels"]
    height: Annotated[int, pa.int32(), "Height in pixels"]
    image: Annotated[bytes | None, Former("picture"), "PNG file; null if decoding failed"]


@dataclass(frozen=True, slots=True)
class CutoutRecord(PixelsRecord):
    """An image whose background is transparent."""

    background: Annotated[
        str | None, Former("ground"), "Found by: network or colour; null if opaque"
    ] = None


# --- the dataset -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One published image: a row of the dataset's metadata; pass-through columns follow.

    `dataset.writer` fills in `path`, `bytes` and `sha256`.
    """

    image_id: Annotated[str, "Image id: <prompt_id>-<replica>"]
    prompt_id: Annotated[str, "Prompt id"]
    replica: Annotated[int, pa.int32(), "Number of the candidate within its prompt, from 0"]
    shard: Annotated[int, pa.int32(), "Index of the shard of the prompt"]
    path: Annotated[str, "File with the image, relative to the output folder"] = ""
    text: Annotated[str, "Prompt as given"]
    text_ru: Annotated[str, "Prompt in Russian, the input of the decoder"]
    lang: Annotated[str, "Language of the prompt, as given or detected"]
    seed: Annotated[int, pa.int64(), "Seed of this image"]
    score: Annotated[float, pa.float32(), "Cosine of ruCLIP's text and image features"]
    rank: Annotated[int, pa.int32(), "Rank by score within the prompt; 1 is best"]
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
    top_k: Annotated[int, pa.int32(), "Sampled from the k likeliest tokens; 0: all"]
    top_p: Annotated[float, pa.float64(), "Sampled from this probability mass"]
    truncated: Annotated[bool, "Whether the text was too long for the decoder and was cut"]
    guidance: Annotated[float, pa.float64(), "Classifier-free guidance; 1: off"] = 1.0
    image_prompt: Annotated[str | None, "Image prompt, if any"] = None
    image_prompt_borders: Annotated[str | None, "Borders kept of it, in tokens"] = None
    translator: Annotated[str | None, "Translation model; null if none was needed"]
    decoder: Annotated[str, "Decoder model"]
    vqgan: Annotated[str, "VQ-GAN model"]
    scorer: Annotated[str, "Scoring model"]
    upscaler: Annotated[str | None, "Super-resolution model; null if not enlarged"]
    segmenter: Annotated[str | None, "Model that found the background, if any"] = None
    background: Annotated[
        str | None, Former("ground"), "Found by: network or colour; null if opaque"
    ] = None


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of the output: its path relative to the output folder, size in bytes, and SHA-256."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str, content: builtins.bytes) -> Self:
        """The path, size and digest of a file with this content."""
        return cls(path, len(content), sha256(content).hexdigest())


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """A finished shard's contents, written last; of two manifests the higher `term` is valid.

    `archives` hold its images, one for each split, unless each image is a file.
    """

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
    archives: tuple[DataFile, ...] = ()
    term: int = 0
    splits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunTotals:
    """Sums over finished shards; `rejected` is by reason, `seconds` and `waiting` are by stage."""

    shards: int = 0
    prompts: int = 0
    images: int = 0
    kept: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    image_bytes: int = 0
    waiting: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """Scores of the published images, cosines in [-1, 1]; `bins` is a histogram of equal steps
    from the lowest to the highest.
    """

    lowest: float
    mean: float
    highest: float
    bins: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RunUsage:
    """Time and cost of a run.

    Of the latest run, from its start to its report: `seconds`; `images_per_second` (None if it drew
    none); `devices`, the most that were busy concurrently; `idle_share`, the share of their time
    when they were not busy (None without devices); `drawn`, images; `stages`, seconds by stage.
    Of all finished shards: `device_hours`, and their cost if a price is configured.
    """

    seconds: float = 0.0
    images_per_second: float | None = None
    devices: int = 0
    idle_share: float | None = None
    device_hours: float = 0.0
    cost: float | None = None
    cost_per_published: float | None = None
    drawn: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunManifest:
    """The configuration, weights, versions and results of a run.

    `tables` holds, by the public URL of each prompt table, the counts of when it was last read:
    rows, and planned prompts that are no longer in it. `files` are those of the report, by path.
    `batch_rows` are the rows with which the decoder drew most shards (see `DeviceUse`). `lineage`
    is the dataset whose tokens this one shows, if nothing was drawn here. `selection` is what else
    decided which images are kept. `yields` are the counts of `selection.yields` by group.
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
    files: Mapping[str, DataFile] = field(default_factory=dict)
    term: int = 0
    batch_rows: int = 0
    lineage: Lineage | None = None
    selection: SelectionRecord = SelectionRecord()
    yields: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def image_id(prompt_id: str, replica: int) -> str:
    """The id of a prompt's image: `<prompt_id>-<replica>`, with at least three digits."""
    return f"{prompt_id}-{replica:03d}"
