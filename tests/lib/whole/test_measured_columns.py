"""Embeddings, tokens, probes, hashes and second scores of a run, in all forms and readers."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars
import pytest

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.checks.rescore import rescore_sample
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.pipeline.artifacts import read_artifact
from rudalle_lib.pipeline.diff import compare
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.report.gallery_data import find_similar
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import ScoreRecord, TokensRecord
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, tiny_config
from tests.support.tiny_run import configure

FORMS = ("files", "webdataset", "parquet")
MEASURES = {
    "embeddings": True,
    "hashes": True,
    "probes": {"nsfw": "preset", "red": ["красный круг"]},
    "second_model": "demo-ruclip",
    "second_text": "original",
}
COLUMNS = ["probe_nsfw", "probe_red", "second_score", "phash", "embedding"]
COLUMNS += ["tokens", "token_columns"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run that measures nothing more; its table has a column `embedding`, too."""
    folder = tmp_path_factory.mktemp("measured")
    table = "prompt,embedding\nчёрный квадрат,mine\nкрасный круг,yours\nсиний крест,\n"
    config = tiny_config(folder, str(folder / "plain"), table)
    finish(config)
    return config


def with_measures(plain: RunConfig, form: str, output: str, **publish: object) -> RunConfig:
    settings = plain.model_dump(mode="json")
    more = {"format": form, "tokens": True, **publish}
    return configure(settings, output, score=MEASURES, publish=more)


@pytest.fixture(scope="module", params=FORMS)
def config(request: pytest.FixtureRequest, plain: RunConfig) -> RunConfig:
    """The same dataset with all measures, resumed, in one form."""
    output = f"{plain.output}-{request.param}"
    config = with_measures(plain, request.param, output)
    if not Path(output).exists():
        shutil.copytree(plain.output, output)
        finish(config)
    return config


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[str]:
    datasets.disable_progress_bars()
    yield str(tmp_path / "cache")
    datasets.enable_progress_bars()


def vectors(frame: pd.DataFrame) -> np.ndarray:
    return np.stack([np.asarray(one, np.float32) for one in frame["embedding"]])


def test_the_metadata_holds_what_the_stages_computed(config: RunConfig) -> None:
    storage, frame = Storage(config.output), read_images(config.output)
    scores: dict[str, ScoreRecord] = {}
    tokens: dict[str, TokensRecord] = {}
    for manifest in read_shard_manifests(storage):
        stages = manifest.stages
        for one in from_table(read_artifact(storage, stages["score"]), ScoreRecord):
            scores[one.image_id] = one
        for drawn in from_table(read_artifact(storage, stages["generate"]), TokensRecord):
            tokens[drawn.image_id] = drawn
    assert len(frame) == 6 and [name for name in frame.columns if name in COLUMNS] == COLUMNS
    for name, row in frame.iterrows():
        score = scores[str(name)]
        assert np.asarray(row.embedding, "<f2").tobytes() == score.embedding
        assert row.phash == score.phash and row.second_score == score.second_score
        assert row.probe_nsfw == score.measures["nsfw"] and row.probe_red == score.measures["red"]
        assert list(row.tokens) == tokens[str(name)].tokens and row.token_columns == 4
    assert frame["second_score"].tolist() == pytest.approx(frame["score"].tolist(), abs=1e-6)
    assert set(frame["input_embedding"]) == {"mine", "yours", ""}


def test_datasets_loads_them(config: RunConfig, cache: str) -> None:
    expected = read_images(config.output)
    for streaming in (False, True):
        loaded = datasets.load_dataset(
            config.output, split="train", streaming=streaming, cache_dir=cache
        )
        rows = [row.get("json", row) for row in loaded]
        assert [row["image_id"] for row in rows] == list(expected.index)
        found = np.array([row["embedding"] for row in rows], np.float32)
        np.testing.assert_allclose(found, vectors(expected), atol=1e-3)
        assert [row["tokens"] for row in rows] == [list(one) for one in expected["tokens"]]
        assert [row["phash"] for row in rows] == list(expected["phash"])
        found_probes = [row["probe_red"] for row in rows]
        assert found_probes == pytest.approx(expected["probe_red"].tolist())
    if config.publish.format != "webdataset":
        kind = datasets.load_dataset(config.output, split="train", cache_dir=cache).features
        assert kind["embedding"] == datasets.List(datasets.Value("float16"), length=16)


def test_other_readers_read_the_metadata(config: RunConfig) -> None:
    expected, pattern = read_images(config.output), f"{config.output}/data/metadata/*.parquet"
    relation = duckdb.sql(f"select image_id, embedding from read_parquet('{pattern}')")
    assert relation is not None
    by_duck = relation.df()
    by_polars = polars.read_parquet(pattern).to_pandas()
    by_pandas = pd.read_parquet(f"{config.output}/data/metadata")
    for frame in (by_duck, by_polars, by_pandas):
        ordered = frame.set_index("image_id").loc[expected.index]
        np.testing.assert_allclose(vectors(ordered), vectors(expected), atol=1e-3)


def test_webdataset_holds_plain_json_numbers(plain: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(plain.output, tmp_path / "out")
    config = with_measures(plain, "webdataset", str(tmp_path / "out"))
    finish(config)
    archive = next((tmp_path / "out/data/webdataset").glob("*.tar"))
    with tarfile.open(archive) as tar:
        name = next(name for name in tar.getnames() if name.endswith(".json"))
        file = tar.extractfile(name)
        assert file is not None
        row = json.load(io.TextIOWrapper(file, "utf-8"))
    assert len(row["embedding"]) == 16 and all(isinstance(x, float) for x in row["embedding"])
    assert all(isinstance(token, int) for token in row["tokens"])


def test_the_output_passes_the_audit(config: RunConfig) -> None:
    audit = audit_output(Storage(config.output))
    rescore_sample(Storage(config.output), audit, 8)
    assert audit.faults == []


def test_only_scoring_and_what_follows_run_again_and_nothing_without_measures(
    plain: RunConfig,
) -> None:
    config = with_measures(plain, "files", plain.output)
    weights = weight_digests(config)
    plan = plan_run(config, Storage(config.output), write=False)
    finished = read_shard_manifests(Storage(plain.output))
    changed = compare(config, weights, plan.shards, finished).changed
    assert {stages for _, stages in changed} == {("score", "publish")}
    same = compare(plain, weight_digests(plain), plan.shards, finished)
    assert same.todo == []
    assert not set(read_images(plain.output).columns) & {*COLUMNS} - {"embedding"}


def test_columns_are_described_in_the_card(config: RunConfig) -> None:
    card = (Path(config.output) / "README.md").read_text("utf-8")
    for name in COLUMNS:
        assert f"| `{name}` |" in card
    assert "Value of the probe score.probes.red" in card
    assert "demo-ruclip" in card


def test_the_gallery_offers_similar_images(config: RunConfig) -> None:
    storage = Storage(config.output)
    frame, found = read_images(config.output), find_similar(storage, read_shard_manifests(storage))
    assert set(found) == set(frame.index)
    points = vectors(frame)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    cosines = points @ points.T - 2 * np.eye(len(frame))
    for row, name in enumerate(frame.index):
        assert len(found[name]) == 5 and name not in found[name]
        nearest = frame.index.get_loc(found[name][0])
        assert cosines[row, nearest] == pytest.approx(cosines[row].max(), abs=1e-3)


def test_embeddings_can_stay_unpublished(plain: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(plain.output, tmp_path / "out")
    config = with_measures(plain, "files", str(tmp_path / "out"), embeddings=False, tokens=False)
    finish(config)
    columns = read_images(config.output).columns
    assert "phash" in columns and "tokens" not in columns
    assert "input_embedding" not in columns  # the name is free for the table's own column
