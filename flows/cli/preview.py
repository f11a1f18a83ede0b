"""The command `preview`: a few prompts drawn now, and a forecast for the whole table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.files import check_writable, write_file
from flows.cli.options import Config, Overrides, Prompts, load
from flows.exits import translate_exit

if TYPE_CHECKING:
    from rudalle_lib.config.run import RunConfig
    from rudalle_lib.report.preview import Forecast
    from rudalle_lib.schema.records import ShardManifest, ShardSpec
    from rudalle_lib.selection.across_shards import Selector
    from rudalle_lib.selection.choices import Choice
    from rudalle_lib.storage.storage import Storage


def preview(
    config: Config,
    count: Annotated[
        int, typer.Option("-n", min=1, max=1000, metavar="N", help="Number of prompts to draw.")
    ] = 8,
    to: Annotated[
        Path, typer.Option(metavar="FILE", help="PNG file to write the contact sheet to.")
    ] = Path("preview.png"),
    prompts: Prompts = None,
    overrides: Overrides = None,
) -> None:
    """Draw a few prompts and forecast the whole run.

    Writes a contact sheet of all candidates, and prints the expected yield, time, storage and cost
    of the whole prompt table. The output of the run is not touched. The rules of `select` are
    applied to the sample; a number of images per group or dataset is reduced to its share.
    """
    with translate_exit():
        draw_preview(load(config, prompts, None, overrides), count, to)


def draw_preview(config: RunConfig, count: int, to: Path) -> None:
    """Draw `count` prompts in a temporary output, write a contact sheet and print a forecast.

    Raises:
        RudalleError: when the run cannot start, a stage fails, or `to` cannot be written.
    """
    import dataclasses
    import tempfile

    from flows.console import SafeConsole
    from flows.prefect_settings import set_up_prefect
    from rudalle_lib.checks.preflight import check_run
    from rudalle_lib.prompts.plan import plan_prompts
    from rudalle_lib.report.preview import choose_prompts, draw_sheet, for_sample, forecast
    from rudalle_lib.storage.storage import Storage

    check_writable(to)
    console = SafeConsole(stderr=True)
    with tempfile.TemporaryDirectory() as folder, console.status("Checking models and prompts"):
        weights = check_run(config, output=False)
        sample = choose_prompts(config.prompts, config.generate.images, count)
        select = for_sample(config.select, sample)
        temporary = config.model_copy(update={"output": folder, "select": select})
        storage = Storage(folder)
        shard = plan_prompts(storage, sample.chosen)
        set_up_prefect()  # needed because the stages are Prefect tasks, called as functions here
        from tasks.without_prefect import load_models, process_shard

        loading = load_models(config)
        choice, selector = _decide(temporary, weights, storage, shard)
        drawn = process_shard(temporary, weights, shard, choice=choice)
        if config.generate.until_accepted is not None:  # prompts get as many images as they need
            images = round(drawn.images * sample.prompts / drawn.prompts)
            sample = dataclasses.replace(sample, images=images)
        sheet = draw_sheet(storage, shard.index, drawn.stages, config, choice)
        stage_bytes = sum(storage.size(path) for path in storage.list("stages"))
        price = config.runtime.price_per_device_hour
        expected = forecast(sample, drawn, stage_bytes, _lanes(config), price)
    write_file(to, sheet)
    _print(config, drawn, expected, sample.prompts, loading, to, selector)


def _decide(
    config: RunConfig, weights: Mapping[str, str], storage: Storage, shard: ShardSpec
) -> tuple[Choice, Selector]:
    """Draw and score the sample if there are rules, and decide by them.

    Returns:
        What decides about the sample, and the selector that has read its scores, if there are
        rules.
    """
    from rudalle_lib.selection.across_shards import Selector
    from rudalle_lib.selection.choices import load_choices
    from tasks.without_prefect import score_shard

    choices = load_choices(config, storage, [shard])
    selector = Selector(config, storage, choices)
    if config.select.rules:
        selector.read([score_shard(config, weights, shard)])
        choices = selector.decide()
    return choices.of(shard.index), selector


def _lanes(config: RunConfig) -> int:
    """Return the number of shards that a run processes concurrently, each on its own devices."""
    from rudalle_lib.runtime.devices import resolve_devices

    if config.runtime.split_decoder:
        return 1
    devices = len(resolve_devices(config.runtime.devices))
    return min(devices, config.runtime.shards_in_flight or devices)


def _print(
    config: RunConfig,
    drawn: ShardManifest,
    expected: Forecast,
    prompts: int,
    loading: float,
    to: Path,
    selector: Selector,
) -> None:
    from flows.cli.outlook import look_at_rules
    from flows.cli.tables import describe_rules, print_pairs
    from rudalle_lib.humanize import counted, duration, reasons

    seconds = sum(artifact.seconds for artifact in drawn.stages.values())
    share = drawn.kept / max(drawn.images, 1)
    per_published = expected.cost_per_published
    rows = [
        ("drawn", f"{counted(drawn.prompts, 'prompt')}, {counted(drawn.images, 'candidate')}"),
        ("time", f"{duration(seconds)}, and {duration(loading)} to load models"),
        ("yield", f"{drawn.kept:,} of {drawn.images:,} would be published ({share:.0%})"),
        ("rejected", reasons(drawn.rejected) or "nothing"),
        ("whole table", f"{counted(prompts, 'prompt')}, {counted(expected.images, 'candidate')}"),
        ("... published", f"about {expected.published:,}"),
        ("... time", f"about {duration(expected.seconds)}"),
        ("... device time", f"about {duration(3600 * expected.device_hours)}"),
        ("... storage", f"about {expected.bytes / 1e6:,.1f} MB"),
        (
            "... cost",
            "unknown; set runtime.price_per_device_hour"
            if expected.cost is None
            else f"about {expected.cost:,.2f}"
            + ("" if per_published is None else f", {per_published:,.5f} per published image"),
        ),
        ("contact sheet", str(to)),
    ]
    selection = look_at_rules(selector)
    if selection is not None:
        rows[4:4] = describe_rules(selection, shards=1)
    print_pairs(f"{config.name}, preview", rows)
