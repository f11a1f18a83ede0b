"""The paths of everything in the output folder, relative to it.

What a stage or a published shard writes has a version in its name: the first 16 characters of its
fingerprint and, after a takeover (`dataset.lease`), the term of the lease. So a run with other
settings, or one that has lost its lease, never overwrites a file that a manifest names. Files of
0.1 have no version; manifests name them, so they are still read.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rudalle_lib.config.precision import PRECISION_FILE as PRECISION_FILE
from rudalle_lib.config.precision import RUN_MANIFEST as RUN_MANIFEST
from rudalle_lib.digests import digest_of

LINEAGE = "lineage.json"
CARD = "README.md"
CROISSANT = "croissant.json"
METRICS = "metrics.prom"
PLAN_FOLDER = "plan"
STAGES_FOLDER = "stages"
IMAGES_FOLDER = "data/images"
ARCHIVES = {"webdataset": ("data/webdataset", "tar"), "parquet": ("data/parquet", "parquet")}
"""Folder and suffix of the files that hold all images of a shard, by `publish.format`."""

IMAGE_TABLE = "metadata.parquet"
"""Name of the table beside image files by which Hugging Face `datasets` finds their metadata."""

MERGED_FOLDER = "data/merged"
METADATA_FOLDER = "data/metadata"
REJECTS_FOLDER = "rejects"
SHARDS_FOLDER = "shards"
LEASE_FOLDER = "lease"
RANGE_LEASES_FOLDER = "lease/shards"
GALLERY_PAGE = "gallery/index.html"
GALLERY_DATA_FOLDER = "gallery/data"
THUMBNAILS_FOLDER = "gallery/thumbnails"
CONTACT_SHEET = "contact_sheet.png"
CURATION = "curation.csv"
"""Decisions by hand, which people put there; a run only reads them."""

REPORT_KINDS = ("report", "image table", "merged")
"""Kinds of files that a report writes and `run.json` describes, and itself (`Name.kind`)."""

UNVERSIONED = ""
"""The version of files that 0.1 wrote."""


class ShardRange(NamedTuple):
    """Shards with consecutive indices, the last one included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}" if self.last > self.first else str(self.first)

    @property
    def named(self) -> str:
        """The shards in words: "shard 7" or "shards 0-99"."""
        return f"shards {self}" if self.last > self.first else f"shard {self}"

    def overlaps(self, other: ShardRange) -> bool:
        """Whether both have a shard in common."""
        return self.first <= other.last and other.first <= self.last

    def holds(self, index: int) -> bool:
        """Whether a shard is one of them."""
        return self.first <= index <= self.last


class Name(NamedTuple):
    """What a path of the output is.

    Attributes:
        kind: plan, stage, image, archive, metadata, rejects, plan rejects, manifest, lease, range
            lease, lineage, precision, curation, report, or what belongs to the report: image
            table, merged, thumbnail.
        number: index of the shard, or number of the lease or merged file; None for other files.
        version: of what a stage or a shard wrote.
        term: of the lease under which it was written; 0 for files without a version.
        split: of the images in it; empty if the dataset has no splits.
        shards: that a range lease is for.
    """

    kind: str
    number: int | None = None
    version: str = UNVERSIONED
    term: int = 0
    split: str = ""
    shards: ShardRange | None = None


_INDEX, _TERM = r"(?P<index>\d{5,})", r"(-(?P<term>[1-9]\d{0,3}))?"
_VERSION = rf"(?P<version>[0-9a-f]{{16}}{_TERM})"
_SPLIT = r"((?P<split>[a-z][a-z0-9_]{0,31})/)?"
_FORMS = {
    kind: re.compile(pattern, re.ASCII)
    for kind, pattern in {
        "plan": rf"plan/{_INDEX}\.parquet",
        "stage": rf"stages/[a-z]+/{_INDEX}(\.{_VERSION})?\.parquet",
        "image": rf"data/images/{_SPLIT}{_INDEX}/({_VERSION}/)?[A-Za-z0-9._-]+\.(png|webp|jpg)",
        "archive": rf"data/(webdataset|parquet)/{_SPLIT}{_INDEX}(\.{_VERSION})?\.(tar|parquet)",
        "merged": rf"data/merged/{_SPLIT}{_INDEX}\.(?P<version>[0-9a-f]{{16}})\.(tar|parquet)",
        "metadata": rf"data/metadata/{_INDEX}(\.{_VERSION})?\.parquet",
        "rejects": rf"rejects/{_INDEX}(\.{_VERSION})?\.parquet",
        "plan rejects": r"rejects/plan-[0-9a-f]{8}\.parquet",
        "manifest": rf"shards/{_INDEX}{_TERM}\.json",
        "lease": rf"lease/{_INDEX}\.json",
        "lineage": r"lineage\.json",
        "precision": r"precision\.json",
        "curation": r"curation\.csv",
        "range lease": rf"lease/shards/{_INDEX}\.(?P<first>\d{{5,}})-(?P<last>\d{{5,}})\.json",
        "image table": rf"data/images/{_SPLIT}metadata\.parquet",
        "thumbnail": rf"gallery/thumbnails/{_INDEX}/{_VERSION}/[A-Za-z0-9._-]+\.webp",
        "report": r"run\.json|README\.md|croissant\.json|metrics\.prom|contact_sheet\.png"
        r"|gallery/index\.html|gallery/data/\d{5,}\.js",
    }.items()
}


def parse(path: str) -> Name | None:
    """What a path is; None unless it has exactly the form of our names."""
    for kind, form in _FORMS.items():
        if match := form.fullmatch(path):
            parts = match.groupdict()
            index, version = parts.get("index"), parts.get("version") or UNVERSIONED
            number, term = int(index) if index else None, int(parts.get("term") or 0)
            first, last = parts.get("first"), parts.get("last")
            shards = ShardRange(int(first), int(last)) if first and last else None
            return Name(kind, number, version, term, parts.get("split") or "", shards)
    return None


def index_of(path: str, kind: str) -> int | None:
    """The shard, or the number of the lease, of a file of a kind; None for any other path."""
    name = parse(path)
    return name.number if name is not None and name.kind == kind else None


def version_of(fingerprint: str, term: int = 0) -> str:
    """The version that files with a fingerprint carry in their names.

    Args:
        fingerprint: of the stage or of the published shard.
        term: of the lease under which they are written.
    """
    return fingerprint[:16] + (f"-{term}" if term else "")


def shard_name(index: int, version: str = UNVERSIONED) -> str:
    """The shard as part of file names: five digits or more, and the version."""
    return f"{index:05d}.{version}" if version else f"{index:05d}"


def plan_path(index: int) -> str:
    """The planned prompts of a shard."""
    return f"{PLAN_FOLDER}/{shard_name(index)}.parquet"


def stage_path(stage: str, index: int, version: str = UNVERSIONED) -> str:
    """The output of a stage for a shard."""
    return f"{STAGES_FOLDER}/{stage}/{shard_name(index, version)}.parquet"


def images_folder(index: int, version: str = UNVERSIONED, split: str = "") -> str:
    """The folder of a shard's published images, if each is a file."""
    folder = f"{_in_split(IMAGES_FOLDER, split)}/{shard_name(index)}"
    return f"{folder}/{version}" if version else folder


def image_path(index: int, version: str, image_id: str, image_format: str, split: str = "") -> str:
    """A published image that is a file; `image_format` is png, webp or jpeg."""
    return f"{images_folder(index, version, split)}/{image_id}.{image_suffix(image_format)}"


def image_table_path(split: str = "") -> str:
    """The metadata of all image files of a split."""
    return f"{_in_split(IMAGES_FOLDER, split)}/{IMAGE_TABLE}"


def _in_split(folder: str, split: str) -> str:
    return f"{folder}/{split}" if split else folder


def image_suffix(image_format: str) -> str:
    """The file name suffix of an image format, without a dot."""
    return {"jpeg": "jpg"}.get(image_format, image_format)


def published_folder(form: str) -> str:
    """The folder of the published images; `form` is files, webdataset or parquet."""
    return ARCHIVES[form][0] if form in ARCHIVES else IMAGES_FOLDER


def archive_path(form: str, index: int, version: str = UNVERSIONED, split: str = "") -> str:
    """The file that holds all images of a shard; `form` is webdataset or parquet."""
    folder, suffix = ARCHIVES[form]
    return f"{_in_split(folder, split)}/{shard_name(index, version)}.{suffix}"


def merged_path(form: str, number: int, version: str, split: str = "") -> str:
    """A file that holds images of several shards; `form` is webdataset or parquet.

    Args:
        form: of the published images.
        number: of the file, from 0, in its split.
        version: 16 hex digits that stand for its content.
        split: of the images in it.
    """
    name = f"{shard_name(number, version)}.{ARCHIVES[form][1]}"
    return f"{_in_split(MERGED_FOLDER, split)}/{name}"


def metadata_path(index: int, version: str = UNVERSIONED) -> str:
    """The metadata of a shard's published images."""
    return f"{METADATA_FOLDER}/{shard_name(index, version)}.parquet"


def rejects_path(index: int, version: str = UNVERSIONED) -> str:
    """The rejected prompts and images of a shard."""
    return f"{REJECTS_FOLDER}/{shard_name(index, version)}.parquet"


def plan_rejects_path(public_table_url: str) -> str:
    """The rows of a prompt table that the plan rejected.

    One file per table, named after a digest of its URL: planning the same table again replaces its
    rows and keeps those of other tables.
    """
    return f"{REJECTS_FOLDER}/plan-{digest_of(public_table_url)[:8]}.parquet"


def shard_manifest_path(index: int, term: int = 0) -> str:
    """The manifest of a shard; the shard is finished once this file exists.

    After a takeover the name holds the term of the lease, and the highest term is valid.
    """
    return f"{SHARDS_FOLDER}/{shard_name(index)}{f'-{term}' if term else ''}.json"


def gallery_chunk_path(number: int) -> str:
    """A part of the gallery's data."""
    return f"{GALLERY_DATA_FOLDER}/{number:05d}.js"


def thumbnail_path(index: int, version: str, image_id: str) -> str:
    """A thumbnail of an image, published or rejected, of a shard."""
    return f"{THUMBNAILS_FOLDER}/{shard_name(index)}/{version}/{image_id}.webp"


def lease_path(number: int, shards: ShardRange | None = None) -> str:
    """A lease of the output, or of some of its shards.

    Of those of the output the one with the highest number is valid, likewise for every shard.
    """
    if shards is None:
        return f"{LEASE_FOLDER}/{number:05d}.json"
    return f"{RANGE_LEASES_FOLDER}/{number:05d}.{shards.first:05d}-{shards.last:05d}.json"
