"""The front matter of the dataset card: what the Hugging Face hub and `datasets` read of it.

It names the files, features, splits and sizes of the dataset
(https://huggingface.co/docs/hub/datasets-cards), so `datasets.load_dataset(folder)` returns images,
captions and scores whatever the format, and a column has one type in all shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from rudalle_lib.dataset import layout
from rudalle_lib.escaping import yaml_text
from rudalle_lib.report.image_table import image_table_names
from rudalle_lib.schema.arrow import free_name
from rudalle_lib.schema.features import Feature, features_of, json_features

WHOLE = "train"
"""Name of the only split, if the dataset has no others."""

IMAGE = {"name": "image", "dtype": "image"}

SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
"""The hub's classes of sizes: images of a dataset that is smaller, and the name of the class."""


class DataForm(NamedTuple):
    """How the published images are stored.

    Attributes:
        form: `publish.format`.
        image_format: `publish.image_format`.
        merged: whether data files are merged ones, which hold the images of several shards.
    """

    form: str
    image_format: str
    merged: bool = False


class SplitSize(NamedTuple):
    """Number of images of a split, and bytes of their files."""

    images: int
    bytes: int


def render_front_matter(form: DataForm, columns: pa.Schema, splits: Mapping[str, SplitSize]) -> str:
    """Render the files, features, splits and sizes of a dataset as lines of YAML.

    Args:
        form: how the images are stored.
        columns: of all shards.
        splits: sizes by name; the name "" is that of a dataset without splits.
    """
    found = {name: size for name, size in splits.items() if size.images}
    total = sum(size.bytes for size in found.values())
    images = sum(size.images for size in found.values())
    lines = [f"size_categories:\n- {_category(images)}", "configs:", "- config_name: default"]
    lines.append("  data_files:")
    for name in found or [""]:
        lines.append(f"  - split: {name or WHOLE}\n    path: {data_files(form, name)}")
    features = dataset_features(form, columns)
    lines += ["dataset_info:", "  features:", *(f"  - {_flow(item)}" for item in features)]
    if found:
        lines.append("  splits:")
    for name, size in found.items():
        lines.append(f"  - name: {name or WHOLE}")
        lines.append(f"    num_bytes: {size.bytes}\n    num_examples: {size.images}")
    return "\n".join([*lines, f"  download_size: {total}", f"  dataset_size: {total}"])


def data_files(form: DataForm, split: str = "") -> str:
    """The pattern of the data files of a split, relative to the output."""
    folder = layout.MERGED_FOLDER if form.merged else layout.published_folder(form.form)
    below = f"{folder}/{split}" if split else folder
    suffix = layout.ARCHIVES[form.form][1] if form.form in layout.ARCHIVES else None
    return f"{below}/**" if suffix is None else f"{below}/*.{suffix}"


def dataset_features(form: DataForm, columns: pa.Schema) -> list[Feature]:
    """The features of the dataset as `datasets` loads it.

    Args:
        form: how the images are stored.
        columns: of all shards.
    """
    if form.form == "webdataset":
        image = {**IMAGE, "name": layout.image_suffix(form.image_format)}
        text = {"dtype": "string"}
        return [
            {"name": "__key__", **text},
            {"name": "__url__", **text},
            {"name": "txt", **text},
            {"name": "json", "struct": json_features(columns)},
            image,
        ]
    names = column_names(form, columns)
    renamed = [field.with_name(name) for field, name in zip(columns, names, strict=True)]
    return [IMAGE, *features_of(pa.schema(renamed))]


def column_names(form: DataForm, columns: pa.Schema) -> list[str]:
    """The names that the columns of the metadata have beside the images, or in a Parquet table."""
    if form.form == "files":
        return image_table_names(columns.names)
    taken = ["image", *columns.names]
    return [free_name(name, taken) if name == "image" else name for name in columns.names]


def _category(images: int) -> str:
    return next((name for limit, name in SIZES if images < limit), "n>1B")


def _flow(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return yaml_text(value) if isinstance(value, str) else str(value)
