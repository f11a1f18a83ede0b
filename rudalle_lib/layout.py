"""The names of everything in the output folder, relative to it; what browsers call its kinds."""

from __future__ import annotations

from rudalle_lib.digests import digest_of

RUN_MANIFEST = "run.json"
CARD = "README.md"
METRICS = "metrics.prom"
PLAN_FOLDER = "plan"
STAGES_FOLDER = "stages"
IMAGES_FOLDER = "data/images"
ARCHIVES = {"webdataset": ("data/webdataset", "tar"), "parquet": ("data/parquet", "parquet")}
METADATA_FOLDER = "data/metadata"
REJECTS_FOLDER = "rejects"
SHARDS_FOLDER = "shards"
LEASE_FOLDER = "lease"
GALLERY_PAGE = "gallery/index.html"
GALLERY_DATA_FOLDER = "gallery/data"
CONTACT_SHEET = "contact_sheet.png"

#: What a browser that is given a file of an object store must be told to show or run it.
CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "md": "text/markdown; charset=utf-8",
    "png": "image/png",
    "webp": "image/webp",
    "jpg": "image/jpeg",
    "tar": "application/x-tar",
}


def shard_name(index: int) -> str:
    """The name of a shard in every file name: five digits or more."""
    return f"{index:05d}"


def plan_path(index: int) -> str:
    """The frozen prompts of a shard."""
    return f"{PLAN_FOLDER}/{shard_name(index)}.parquet"


def stage_path(stage: str, index: int) -> str:
    """What a stage made of a shard."""
    return f"{STAGES_FOLDER}/{stage}/{shard_name(index)}.parquet"


def images_folder(index: int) -> str:
    """The published images of a shard."""
    return f"{IMAGES_FOLDER}/{shard_name(index)}"


def image_path(index: int, image_id: str, image_format: str) -> str:
    """A published image; `image_format` is png, webp or jpeg."""
    return f"{images_folder(index)}/{image_id}.{image_suffix(image_format)}"


def image_suffix(image_format: str) -> str:
    """What the name of a picture of a format ends in."""
    return {"jpeg": "jpg"}.get(image_format, image_format)


def pictures_folder(form: str) -> str:
    """Where the pictures of a dataset are, by its form: files, webdataset or parquet."""
    return ARCHIVES[form][0] if form in ARCHIVES else IMAGES_FOLDER


def archive_path(form: str, index: int) -> str:
    """The file that holds all pictures of a shard, in the form webdataset or parquet."""
    folder, suffix = ARCHIVES[form]
    return f"{folder}/{shard_name(index)}.{suffix}"


def metadata_path(index: int) -> str:
    """The metadata of a shard's published images."""
    return f"{METADATA_FOLDER}/{shard_name(index)}.parquet"


def rejects_path(index: int) -> str:
    """What was not published of a shard's prompts and images."""
    return f"{REJECTS_FOLDER}/{shard_name(index)}.parquet"


def plan_rejects_path(public_table_url: str) -> str:
    """The rows of a prompt table that did not make it into the plan.

    One file a table, named by its URL, because a re-run of the same table finds the same rows
    again and must replace them, while another table's rows stay.
    """
    return f"{REJECTS_FOLDER}/plan-{digest_of(public_table_url)[:8]}.parquet"


def shard_manifest_path(index: int) -> str:
    """The manifest that makes a shard exist."""
    return f"{SHARDS_FOLDER}/{shard_name(index)}.json"


def gallery_chunk_path(number: int) -> str:
    """A part of what the gallery shows."""
    return f"{GALLERY_DATA_FOLDER}/{number:05d}.js"


def lease_path(number: int) -> str:
    """Who writes to the output; the highest number counts."""
    return f"{LEASE_FOLDER}/{number:05d}.json"


def index_of(path: str) -> int | None:
    """The shard that a file name such as `plan/00012.parquet` stands for, None for other names."""
    stem = path.rpartition("/")[2].partition(".")[0]
    return int(stem) if stem.isascii() and stem.isdigit() and len(stem) >= 5 else None
