"""The command `preview`: a few prompts drawn now, and what the whole table would give and take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.exits import clear_exit

if TYPE_CHECKING:
    from rudalle_lib.config import RunConfig
    from rudalle_lib.preview import Forecast
    from rudalle_lib.records import ShardManifest


def preview(
    config: Annotated[str, typer.Argument(help="A YAML file or URL, or a packaged name.")],
    count: Annotated[int, typer.Option("-n", min=1, max=1000, help="Prompts to draw.")] = 8,
    to: Annotated[Path, typer.Option(help="File that the contact sheet is written to.")] = Path(
        "preview.png"
    ),
    prompts: Annotated[str | None, typer.Option(help="Prompt table, as for `run`.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: score.min_score=0.3."),
    ] = None,
) -> None:
    """Draw a few prompts of the table; forecast yield, time, storage and cost of all of it."""
    with clear_exit():
        from flows.cli import load

        draw_preview(load(config, prompts, None, overrides), count, to)


def draw_preview(config: RunConfig, count: int, to: Path) -> None:
    """Draw `count` prompts somewhere else, write their contact sheet and print the forecast."""
    import tempfile

    from rich.console import Console

    from flows.embedded import set_up_prefect
    from rudalle_lib.errors import StorageError
    from rudalle_lib.planning import plan_prompts
    from rudalle_lib.preflight import check_run
    from rudalle_lib.preview import choose_prompts, draw_sheet, forecast
    from rudalle_lib.storage import Storage

    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory() as folder, console.status("Looking at models and prompts"):
        weights = check_run(config, output=False)
        sample = choose_prompts(config.prompts, config.generate.images, count)
        elsewhere = config.model_copy(update={"output": folder})
        storage = Storage(folder)
        shard = plan_prompts(storage, sample.chosen)
        set_up_prefect()  # the stages are its tasks, here called as plain functions
        from tasks.plain import load_models, work_on

        loading = load_models(config)
        drawn = work_on(elsewhere, weights, shard)
        sheet = draw_sheet(storage, shard.index, drawn.stages, config.score, config.name)
        kept_by_stages = sum(storage.size(path) for path in storage.list("stages"))
        price = config.runtime.price_per_device_hour
        expected = forecast(sample, drawn, kept_by_stages, _lanes(config), price)
    try:
        to.write_bytes(sheet)
    except OSError as error:
        raise StorageError(f"Cannot write {to}: {error.strerror or error}.") from None
    _print(config, drawn, expected, sample.prompts, loading, to)


def _lanes(config: RunConfig) -> int:
    """Shards that a run works on at once, each on devices of its own."""
    from rudalle_lib.devices import resolve_devices

    if config.runtime.split_decoder:
        return 1
    return min(len(resolve_devices(config.runtime.devices)), config.runtime.shards_in_flight)


def _print(
    config: RunConfig,
    drawn: ShardManifest,
    expected: Forecast,
    prompts: int,
    loading: float,
    to: Path,
) -> None:
    from flows.progress import counted, duration, reasons
    from flows.tables import print_pairs

    seconds = sum(artifact.seconds for artifact in drawn.stages.values())
    share = drawn.kept / max(drawn.images, 1)
    each = expected.cost_per_published
    rows = [
        ("drawn", f"{counted(drawn.prompts, 'prompt')}, {counted(drawn.images, 'candidate')}"),
        ("took", f"{duration(seconds)}, after {duration(loading)} of loading models"),
        ("yield", f"{drawn.kept:,} of {drawn.images:,} would be published ({share:.0%})"),
        ("set aside", reasons(drawn.rejected) or "nothing"),
        ("whole table", f"{counted(prompts, 'prompt')}, {counted(expected.images, 'candidate')}"),
        ("... published", f"about {expected.published:,}"),
        ("... time", f"about {duration(expected.seconds)}"),
        ("... device time", f"about {duration(3600 * expected.device_hours)}"),
        ("... storage", f"about {expected.bytes / 1e6:,.1f} MB"),
        (
            "... cost",
            "unknown; give runtime.price_per_device_hour"
            if expected.cost is None
            else f"about {expected.cost:,.2f}"
            + ("" if each is None else f", {each:,.5f} a published image"),
        ),
        ("contact sheet", str(to)),
    ]
    print_pairs(f"{config.name}, preview", rows)
