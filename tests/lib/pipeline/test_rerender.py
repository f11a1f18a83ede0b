"""A dataset can be rendered again from its tokens: nothing is drawn, and it names its source."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.checks.preflight import check_rerender
from rudalle_lib.checks.replay import replay
from rudalle_lib.checks.rescore import rescore_sample
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.dataset.lineage import read_lineage
from rudalle_lib.dataset.manifests import read_shard_manifests, require_run_manifest
from rudalle_lib.errors import ConfigError, RudalleError, SettingsError, ShardError, StorageError
from rudalle_lib.pipeline.diff import compare
from rudalle_lib.pipeline.rerender import rerender_config, seed_output
from rudalle_lib.pipeline.tidy import tidy
from rudalle_lib.prompts.plan import read_plan
from rudalle_lib.report.report import write_report
from rudalle_lib.schema.records import RunManifest
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import Event, Step, listener
from tests.support.finished_run import finish
from tests.support.tiny_run import contents, snapshot
from tests.support.tiny_stack import write_tiny_vqgan

COARSE = ("decode.dtype=bfloat16", "upscale.model=null", "score.keep_best=3")
STARTED = "2026-01-01T00:00:00+00:00"


def rerender(source: str, to: str, *overrides: str) -> RunManifest:
    """What the flow does, without Prefect."""
    from tasks.without_prefect import process_shard

    config = rerender_config(Storage(source), to, overrides)
    weights = check_rerender(Storage(source), config)
    plan = seed_output(Storage(source), config, weights)
    finished = read_shard_manifests(Storage(to))
    for shard in compare(config, weights, plan.shards, finished).todo:
        process_shard(config, weights, shard)
    return write_report(Storage(to), config, weights, len(plan.shards), STARTED)


@pytest.fixture
def steps() -> Any:
    """The stages that have worked, in a set that grows."""
    seen: set[str] = set()

    def note(event: Event) -> None:
        if isinstance(event, Step):
            seen.add(event.stage)

    token = listener.set(note)
    yield seen
    listener.reset(token)


def test_it_is_the_dataset_that_a_run_with_these_settings_makes(
    config: RunConfig, tmp_path: Path, steps: set[str]
) -> None:
    tidy(Storage(config.output), "tokens", 60)
    before = snapshot(Path(config.output))
    new = str(tmp_path / "new")
    run = rerender(config.output, new, *COARSE)
    assert steps == {"decode", "score"}
    assert snapshot(Path(config.output)) == before

    decode = config.decode.model_copy(update={"dtype": "bfloat16"})
    upscale = config.upscale.model_copy(update={"model": None})
    score = config.score.model_copy(update={"keep_best": 3})
    update = {"decode": decode, "upscale": upscale, "score": score, "output": str(tmp_path / "x")}
    drawn = config.model_copy(update=update)
    assert finish(drawn).totals.kept == run.totals.kept
    parts = ("data", "rejects", "plan")
    assert contents(Path(new), *parts) == contents(Path(drawn.output), *parts)

    images = read_images(new)
    assert set(read_images(config.output).index) < set(images.index)
    audit = audit_output(Storage(new))
    rescore_sample(Storage(new), audit, 4)
    assert audit.faults == [] and audit.notes == []
    for image_id in images.index[::4]:
        assert replay(Storage(new), str(image_id)).identical


def test_run_json_and_the_card_tell_where_it_is_from(config: RunConfig, tmp_path: Path) -> None:
    source, new = Storage(config.output), Storage(str(tmp_path / "new"))
    run = rerender(config.output, new.url(), "name=again", *COARSE)
    lineage = require_run_manifest(new).lineage
    assert lineage is not None and lineage == read_lineage(new) == run.lineage
    assert (lineage.source, lineage.name) == (source.public_path(), "tiny")
    assert lineage.finished == require_run_manifest(source).finished
    assert dict(lineage.changes) == {
        "decode.dtype": ("float32", "bfloat16"),
        "name": ("tiny", "again"),
        "score.keep_best": (2, 3),
        "upscale.model": ("demo-realesrgan-x2", None),
    }
    card = new.read_bytes("README.md").decode()
    assert "## Lineage\n" in card and f"`{lineage.run[:16]}`" in card
    assert '| `upscale.model` | `"demo-realesrgan-x2"` | `null` |' in card
    assert "## Lineage" not in source.read_bytes("README.md").decode()
    assert run.totals.seconds["generate"] == 0.0 and run.totals.images == 15
    assert run.usage.images_per_second is None


def test_artifacts_that_stay_the_same_are_not_made_again(
    config: RunConfig, tmp_path: Path, steps: set[str]
) -> None:
    rerender(config.output, str(tmp_path / "new"), "publish.format=parquet")
    assert steps == set()
    tidy(Storage(config.output), "decoded", 60)
    rerender(config.output, str(tmp_path / "other"), "publish.format=parquet")
    assert steps == {"upscale"}


def test_it_can_be_repeated_and_follows_its_source(
    config: RunConfig, tmp_path: Path, steps: set[str]
) -> None:
    new = str(tmp_path / "new")
    rerender(config.output, new, *COARSE)
    steps.clear()
    before = contents(Path(new), "data", "shards", "plan", "stages")
    rerender(config.output, new, *COARSE)
    assert steps == set() and contents(Path(new), "data", "shards", "plan", "stages") == before

    table = Path(str(config.prompts.uri))
    larger = tmp_path / "larger.csv"
    larger.write_text(table.read_text("utf-8") + "белый квадрат,,,,more\n", encoding="utf-8")
    prompts = config.prompts.model_copy(update={"uri": str(larger)})
    finish(config.model_copy(update={"prompts": prompts}))
    rerender(config.output, new, *COARSE)
    assert len(read_plan(Storage(new))) == len(read_plan(Storage(config.output))) == 4
    assert audit_output(Storage(new)).faults == []


def test_the_decoder_and_the_table_are_not_needed(config: RunConfig, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(str(config.weights.folder), weights)
    for name in ("demo-dalle", "demo-marian"):
        shutil.rmtree(weights / name)
    new = str(tmp_path / "new")
    run = rerender(config.output, new, f"weights.folder={weights}", *COARSE)
    assert run.weights["demo-dalle"] == require_run_manifest(Storage(config.output)).weights[
        "demo-dalle"
    ]  # fmt: skip
    table = Path(str(config.prompts.uri))
    content = table.read_bytes()
    table.unlink()
    try:
        assert rerender(config.output, str(tmp_path / "b"), *COARSE).totals.kept == run.totals.kept
    finally:
        table.write_bytes(content)


def test_on_s3(config: RunConfig, s3_url: str) -> None:
    assert rerender(config.output, s3_url, "publish.format=webdataset").totals.kept == 8
    assert audit_output(Storage(s3_url)).faults == []
    assert read_lineage(Storage(s3_url)) is not None


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=4", "seed"),
        ("generate.top_p=0.5", "generate.top_p"),
        ("generate.images=2", "generate.images"),
        ("runtime.dtype=bfloat16", "runtime.dtype"),
        ("translate.language=ru", "translate.language"),
        ("prompts.shard_size=7", "prompts.shard_size"),
    ],
)
def test_what_would_change_the_tokens_is_refused(
    config: RunConfig, tmp_path: Path, override: str, key: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{key} would change the image tokens"):
        rerender_config(Storage(config.output), str(tmp_path / "new"), [override])
    rerender_config(Storage(config.output), str(tmp_path / "new"), ["generate.batch_size=3"])


def test_wrong_sources_and_outputs_are_one_sentence(config: RunConfig, tmp_path: Path) -> None:
    source = Storage(config.output)

    def refused(error: type[RudalleError], message: str, to: str, *overrides: str) -> None:
        with pytest.raises(error, match=message):
            rerender(config.output, to, *overrides)

    refused(ConfigError, "in its source", config.output)
    refused(ConfigError, "in its source", f"{config.output}/new")
    refused(ConfigError, "decode.modell", str(tmp_path / "new"), "decode.modell=x")
    other = config.model_copy(update={"output": str(tmp_path / "other")})
    shutil.copytree(config.output, other.output)
    refused(StorageError, "holds a dataset that was drawn there", other.output)

    rerender(other.output, str(tmp_path / "of_other"), "publish.gallery=false")
    refused(StorageError, "was rendered from .*other, not from", str(tmp_path / "of_other"))

    shard = read_plan(source)[1]
    (tokens,) = [one for one in source.list("stages/generate") if f"/{shard.index:05d}." in one]
    content = source.read_bytes(tokens)
    source.delete(tokens)
    refused(StorageError, "is gone, so shard 00001 cannot be rendered", str(tmp_path / "new"))
    source.write_bytes(tokens, content)
    source.delete(layout.shard_manifest_path(shard.index))
    refused(ShardError, "1 of 3 shards of .* are not finished", str(tmp_path / "new"))


def test_a_vqgan_with_fewer_codes_is_refused(config: RunConfig, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(str(config.weights.folder), weights)
    write_tiny_vqgan(weights, codes=4)
    with pytest.raises(SettingsError, match="has 4 codes, but the image tokens of .* go up to"):
        rerender(config.output, str(tmp_path / "new"), f"weights.folder={weights}")


def test_a_damaged_lineage_is_found(config: RunConfig, tmp_path: Path) -> None:
    new = Storage(str(tmp_path / "new"))
    rerender(config.output, new.url(), *COARSE)
    content = new.read_bytes(layout.LINEAGE)
    new.write_bytes(layout.LINEAGE, content.replace(b'"tiny"', b'"tine"'))
    (fault,) = audit_output(new).faults
    assert (fault.kind, fault.path) == ("label", layout.LINEAGE)
    new.write_bytes(layout.LINEAGE, b"{}")
    (fault,) = audit_output(new).faults
    assert (fault.kind, fault.path) == ("damaged", layout.LINEAGE)
