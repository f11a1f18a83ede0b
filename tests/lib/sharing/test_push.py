"""A push sends what is missing, replaces the pages last, and touches nothing of a stranger's."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.errors import StorageError
from rudalle_lib.sharing.contents import read_contents
from rudalle_lib.sharing.folder import FolderTarget
from rudalle_lib.sharing.hub import HubTarget
from rudalle_lib.sharing.push import Pushed, push
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, in_form
from tests.support.hub_server import HubServer

NAME = "somebody/squares"

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"
)
"""huggingface_hub uploads as httpx no longer wants it."""


def pushed(config: RunConfig, target: HubTarget | FolderTarget, rows: int = 3) -> Pushed:
    return push(read_contents(Storage(config.output), rows), target)


def to_hub(config: RunConfig, rows: int = 3) -> Pushed:
    return pushed(config, HubTarget(f"hf://datasets/{NAME}"), rows)


@pytest.mark.parametrize("form", ["files", "webdataset", "parquet"])
@pytest.mark.parametrize("splits", [None, {"train": 0.6, "validation": 0.4}])
def test_datasets_loads_what_was_pushed(
    config: RunConfig, hub: HubServer, tmp_path: Path, form: str, splits: object
) -> None:
    config = in_form(config, tmp_path / "out", format=form, splits=splits)
    finish(config)
    result = to_hub(config)
    assert result.url == f"{hub.url}/datasets/{NAME}" and result.images == 8
    files = hub.files(NAME)
    names = {path.partition("/")[0] for path in files}
    assert names == {
        "data", "rejects", "README.md", "croissant.json", "contact_sheet.png", "run.json",
    }  # fmt: skip
    copy = tmp_path / "copy"
    for path, content in files.items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(content)
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(str(copy), cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded) == sorted(splits or ["train"])  # type: ignore[call-overload]
    rows = [row.get("json", row) for part in loaded.values() for row in part]
    images = [row.get("png", row.get("image")) for part in loaded.values() for row in part]
    expected = read_images(config.output)
    assert {row["image_id"]: row["text"] for row in rows} == dict(expected["text"])
    assert {image.size for image in images} == {(expected.width.iloc[0], expected.height.iloc[0])}
    datasets.enable_progress_bars()


def test_a_second_push_sends_nothing_and_a_grown_dataset_only_the_rest(
    config: RunConfig, hub: HubServer, tmp_path: Path
) -> None:
    config = in_form(config, tmp_path / "out", format="parquet")
    finish(config)
    first = to_hub(config)
    uploads = dict(hub.uploads)
    again = to_hub(config)
    assert again.new == () and len(again.unchanged) == len(first.new)
    assert dict(hub.uploads) == uploads and len(hub.repositories[NAME].commits) == 1
    (tmp_path / "more.csv").write_text("prompt,images\nдва круга,4\nтри круга,4\n")
    prompts = config.prompts.model_copy(update={"uri": str(tmp_path / "more.csv")})
    grown = config.model_copy(update={"prompts": prompts})
    finish(grown)
    rest = to_hub(grown)
    full = [path for path in first.new if "/merged/" in path][:2]
    assert set(full) <= set(rest.unchanged)
    assert sorted(rest.deleted) == sorted(set(first.new) - set(rest.unchanged))
    assert {path for path in hub.files(NAME) if "/" in path} == {*rest.new, *rest.unchanged}


def test_it_is_private_unless_it_is_said_to_be_public(config: RunConfig, hub: HubServer) -> None:
    to_hub(config)
    assert hub.repositories[NAME].private
    pushed(config, HubTarget("hf://datasets/somebody/open", public=True))
    assert not hub.repositories["somebody/open"].private
    with pytest.raises(StorageError, match="is public: everybody would see"):
        pushed(config, HubTarget("hf://datasets/somebody/open"))


def test_a_branch_is_created_and_main_stays(config: RunConfig, hub: HubServer) -> None:
    pushed(config, HubTarget(f"hf://datasets/{NAME}@v1"))
    assert hub.files(NAME) == {} and "README.md" in hub.files(NAME, "v1")


def test_a_dry_run_creates_and_sends_nothing(config: RunConfig, hub: HubServer) -> None:
    target = HubTarget(f"hf://datasets/{NAME}")
    result = push(read_contents(Storage(config.output), 3), target, dry_run=True)
    assert len(result.new) > 3 and result.size > 0 and hub.repositories == {}
    assert {method for method, _ in hub.requests} == {"GET"}


def test_a_stranger_s_dataset_is_refused(config: RunConfig, hub: HubServer) -> None:
    to_hub(config)
    hub.repositories[NAME].branches["main"] = {"README.md": b"mine", "data/metadata/x.csv": b"1"}
    with pytest.raises(StorageError, match="already has README.md, but was not pushed"):
        to_hub(config)


def test_files_of_others_beside_a_dataset_stay(config: RunConfig, hub: HubServer) -> None:
    to_hub(config)
    hub.files(NAME)["notes/mine.md"] = b"1"
    result = to_hub(config, rows=5)
    assert result.deleted and hub.files(NAME)["notes/mine.md"] == b"1"


# --- folders -------------------------------------------------------------------------------------


def test_a_folder_or_bucket_gets_the_same_files(
    config: RunConfig, hub: HubServer, output_url: str
) -> None:
    to_hub(config)
    first = pushed(config, FolderTarget(output_url))
    storage = Storage(output_url)
    assert {path: storage.read_bytes(path) for path in storage.list()} == hub.files(NAME)
    assert first.url == storage.public_path()
    again = pushed(config, FolderTarget(output_url), rows=8)
    assert len(again.deleted) > 2 and set(again.deleted).isdisjoint(storage.list())
    with pytest.raises(StorageError, match="is the output of a run"):
        pushed(config, FolderTarget(config.output))
