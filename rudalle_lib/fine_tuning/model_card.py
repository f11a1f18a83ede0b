"""The card of new weights: what they are, what they were made from, and how well they learnt."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from rudalle_lib import registry
from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.escaping import markdown_text
from rudalle_lib.fine_tuning.record import FineTuneRecord
from rudalle_lib.humanize import reasons

KINDS = {"decoder": "decoder", "vqgan": "VQ-GAN", "scorer": "ruCLIP"}
"""Kinds of networks, as people call them."""

ON_CARD = ("seed", "trains", "base", "vqgan", "encoding", "training", "evaluation")
"""Settings that the card shows: those that the weights depend on."""


def render_card(record: FineTuneRecord, config: FineTuneConfig) -> str:
    """Render the card as Markdown."""
    entry = registry.get(registry_name(config))
    digest = record.base_weights[record.base]
    lines = [
        f"# {record.name}",
        "",
        f"A ruDALL-E {KINDS[record.trains]}, fine-tuned from {markdown_text(record.base)} with "
        "rudalle-flows.",
        "",
        *_table({
            "base": f"{record.base}, weights {digest}" + (
                f", itself made from {entry.name}" if entry.name != record.base else ""
            ),
            "steps": f"{record.steps:,}, weights of step {record.weights_step:,}"
            + (", stopped early" if record.stopped_early else ""),
            "minutes": f"{record.seconds / 60:,.1f}",
            "loss": f"{record.first['loss']:.4f} at first, {record.last['loss']:.4f} at last",
            **({"held-out loss": _held_out(record)} if record.held_out_losses else {}),
        }),
        "",
        "## Data",
        "",
        "| Dataset | Images | Repeats |",
        "| --- | ---: | ---: |",
        *(
            f"| {markdown_text(source.uri)} | {source.images:,} | {source.repeats} |"
            for source in record.sources
        ),
        "",
        f"{record.held_out:,} of {record.images:,} images were held out, by a hash of their "
        f"caption. {_rejected(record.rejected)}",
        "",
        "## Use",
        "",
        "In the configuration of a run of rudalle-flows:",
        "",
        "```yaml",
        record.usage(),
        "```",
        *_published(record, entry),
        "",
        "## Licence",
        "",
        _licence(entry),
        "",
        "## Settings",
        "",
        "`rudalle-flows fine-tune` with these settings makes the same weights on the same machine:",
        "",
        "```yaml",
        _settings(config),
        "```",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def registry_name(config: FineTuneConfig) -> str:
    """The registered model at the bottom of a fine-tuning."""
    own = config.weights.models.get(config.base_model)
    return config.base_model if own is None else own.base


def _table(rows: Mapping[str, str]) -> list[str]:
    cells = [f"| {name} | {value} |" for name, value in rows.items()]
    return ["| | |", "| --- | --- |", *cells]


def _held_out(record: FineTuneRecord) -> str:
    losses = list(record.held_out_losses.values())
    return f"{losses[0]:.4f} at first, {min(losses):.4f} at best, {losses[-1]:.4f} at last"


def _rejected(rejected: Mapping[str, int]) -> str:
    if not rejected:
        return "No row was rejected."
    return f"Rejected rows, which were not learnt from: {markdown_text(reasons(rejected))}."


def _published(record: FineTuneRecord, entry: registry.ModelEntry) -> list[str]:
    if entry.repository is None:
        return []
    return [
        "",
        f"The folder `published` has the same weights as {entry.name} is published, so with "
        f"`weights.folder: {record.folder}/published` they take its place.",
    ]


def _licence(entry: registry.ModelEntry) -> str:
    text = f"Licence of the weights of {entry.name}: {markdown_text(entry.licence)}. "
    if registry.is_stated(entry.licence):
        return text + (
            "These weights are derived from them, so its terms hold for them, too. The images and "
            "captions that were learnt from have licences of their own."
        )
    return text + (
        "What their authors allow for derived weights is therefore not known; ask them before you "
        "give these away. The images and captions that were learnt from have licences of their own."
    )


def _settings(config: FineTuneConfig) -> str:
    values = config.public_dict()
    without = () if config.trains == "decoder" else ("vqgan",)
    shown = {key: values[key] for key in ON_CARD if key not in without}
    shown["base"] = config.base_model
    shown["data"] = [
        {key: value for key, value in source.model_dump(mode="json").items() if value is not None}
        for source in config.data
    ]
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip()
