"""`croissant.json`: the dataset described for programs, in JSON-LD.

The vocabulary is Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html),
which `mlcroissant`, search engines and the hub read. It is plain JSON, so no library is needed to
write it; tests load the records of every form with `mlcroissant`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from rudalle_lib.dataset import layout
from rudalle_lib.report.dataset_card import CardModel, licence_texts
from rudalle_lib.report.front_matter import DataForm, SplitSize, column_names
from rudalle_lib.schema.records import RunManifest

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"

RECORDS = "images"
"""Id of the only record set; fields are `images/<column>`."""

DATA = "data-files"
"""Id of the files that hold the rows, which in a Parquet dataset hold the images, too."""

IMAGES = "image-files"
"""Id of the image files, or of the tars that hold them."""

MEDIA = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
PARQUET, TAR = "application/x-parquet", "application/x-tar"

_TERMS = """citeAs column equivalentProperty examples extract field fileProperty fileObject fileSet
format includes isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated
replace samplingRate separator source subField transform""".split()

CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{name: f"cr:{name}" for name in _TERMS},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}
"""The terms of Croissant 1.0."""


def render_croissant(
    manifest: RunManifest,
    models: Sequence[CardModel],
    languages: Sequence[str],
    columns: pa.Schema,
    splits: Mapping[str, SplitSize],
    form: DataForm,
) -> bytes:
    """Render the description.

    Args:
        manifest: the finished run.
        models: the models that drew the images.
        languages: language codes of the prompts.
        columns: of all shards.
        splits: sizes by name; the name "" is that of a dataset without splits.
        form: how the images are stored.
    """
    has_splits = bool(splits.keys() - {""})
    version = manifest.versions.get("rudalle-flows", "0")
    names = ", ".join(dict.fromkeys(model.name for model in models))
    value = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": manifest.name,
        "description": f"{manifest.totals.kept:,} images drawn from {manifest.totals.prompts:,} "
        f"prompts by rudalle-flows with {names}. README.md says how, with figures, licences and "
        "limitations.",
        "license": " ".join(licence_texts(models)),
        "datePublished": manifest.finished[:10],
        "inLanguage": list(languages) or ["ru"],
        "keywords": ["text-to-image", "synthetic", "ruDALL-E"],
        "creator": {"@type": "sc:Organization", "name": f"rudalle-flows {version}"},
        "rai:dataCollection": "The images are synthetic: trained models drew them from the texts.",
        "distribution": list(_distribution(form, has_splits)),
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": RECORDS,
                "name": RECORDS,
                "description": "One record per published image.",
                "key": {"@id": f"{RECORDS}/image_id"},
                "field": list(_fields(form, columns)),
            }
        ],
    }
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"


def _distribution(form: DataForm, has_splits: bool) -> list[dict[str, Any]]:
    """The files of the dataset, which are beside the description."""
    between = "/*" if has_splits else ""
    folder = layout.MERGED_FOLDER if form.merged else layout.published_folder(form.form)
    if form.form == "parquet":
        return [_files(DATA, f"{folder}{between}/*.parquet", PARQUET, "Images and metadata.")]
    if form.form == "webdataset":
        metadata = f"{layout.METADATA_FOLDER}/*.parquet"
        tars = f"{folder}{between}/*.tar"
        return [
            _files(DATA, metadata, PARQUET, "The metadata of all images."),
            _files(IMAGES, tars, TAR, "WebDataset: images with their prompts and metadata."),
        ]
    table = f"{layout.IMAGES_FOLDER}{between}/{layout.IMAGE_TABLE}"
    suffix = layout.image_suffix(form.image_format)
    images = f"{layout.IMAGES_FOLDER}{between}/*/*/*.{suffix}"
    return [
        _files(DATA, table, PARQUET, "The metadata of all images."),
        _files(IMAGES, images, MEDIA[form.image_format], "The images, one file each."),
    ]


def _files(name: str, pattern: str, media: str, description: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "description": description,
        "encodingFormat": media,
        "includes": pattern,
    }


def _fields(form: DataForm, columns: pa.Schema) -> list[dict[str, Any]]:
    """The columns of simple types, after the image where it is in the same file."""
    fields = []
    if form.form == "parquet":
        source = {
            "fileSet": {"@id": DATA},
            "extract": {"column": "image"},
            "transform": {"jsonPath": "bytes"},
        }
        fields.append(_field("image", "The image.", "sc:ImageObject", source))
    for column, name in zip(columns, column_names(form, columns), strict=True):
        if form.form == "webdataset":
            name = column.name  # of the metadata, which have no column of images beside them
        kind = column.type
        repeated = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        data_type = _data_type(kind.value_type if repeated else kind)
        if data_type is None:
            continue
        note = (column.metadata or {}).get(b"description", b"").decode(errors="replace")
        source = {"fileSet": {"@id": DATA}, "extract": {"column": name}}
        field = _field(name, note or "Copied from the prompt table.", data_type, source)
        fields.append({**field, "repeated": True} if repeated else field)
    return fields


def _field(name: str, description: str, data_type: str, source: Any) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{RECORDS}/{quote(name, safe='')}",
        "name": name,
        "description": description,
        "dataType": data_type,
        "source": source,
    }


def _data_type(kind: pa.DataType) -> str | None:
    """The type in the words of schema.org; None for structures, which readers show as text."""
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "sc:Float"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "sc:Date"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return "sc:Text"
    return None
