"""The command `fine-tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import Output, find_config
from flows.exits import translate_exit
from rudalle_lib.humanize import counted, duration

if TYPE_CHECKING:
    from rudalle_lib.config.fine_tune import FineTuneConfig
    from rudalle_lib.fine_tuning.record import FineTuneRecord

Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="Configuration of the fine-tuning: a YAML file or URL, or the name of a packaged "
        "one, such as finetune-demo.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting of the configuration, such as training.steps=1000. Repeatable.",
    ),
]


def fine_tune(
    config: Config,
    output: Output = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only check everything, and show what would be done."),
    ] = False,
) -> None:
    """Fine-tune a decoder, VQ-GAN or ruCLIP on your own images.

    After an interruption, run the same command again: encoded images and the last checkpoint are
    kept.
    """
    with translate_exit():
        from rudalle_lib.config.fine_tune import FineTuneConfig

        shortcuts = [] if output is None else [f"output={output}"]
        path = find_config(config, fine_tuning=True)
        settings = FineTuneConfig.load(path, [*shortcuts, *(overrides or [])])
        if dry_run:
            show_plan(settings)
            return
        from flows.training.run import fine_tune_here

        record, finished_before = fine_tune_here(settings)
        typer.echo(summary(record, finished_before))


def show_plan(settings: FineTuneConfig) -> None:
    """Check a fine-tuning, and print what it would do."""
    from flows.cli.tables import print_pairs
    from rudalle_lib.fine_tuning.outlook import look_ahead

    print_pairs(settings.name, look_ahead(settings))


def summary(record: FineTuneRecord, finished_before: bool) -> str:
    """Return the figures of a fine-tuning, and at the end the lines that use its weights."""
    if finished_before:
        first = "This fine-tuning is finished; there is nothing to do."
    else:
        rejected = sum(record.rejected.values())
        held_out = list(record.held_out_losses.values())
        measured = f", held-out loss {held_out[0]:.4f} to {held_out[-1]:.4f}" if held_out else ""
        first = (
            f"{counted(record.steps, 'step')} on {counted(record.images, 'image')}, "
            f"{rejected:,} rejected, {duration(record.seconds)} of training; loss "
            f"{record.first['loss']:.4f} to {record.last['loss']:.4f}{measured}."
        )
    return "\n".join(
        [first, f"The weights are in {record.folder}. To use them in a run:", record.usage()]
    )
