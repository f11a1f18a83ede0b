"""What a fine-tuning depends on, and `fine_tune.json`, which says that it is finished."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.sections import DecodeConfig
from rudalle_lib.dataset.manifests import package_versions, sealed_json, unsealed
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import DamagedError
from rudalle_lib.fine_tuning.losses import is_measurement
from rudalle_lib.fine_tuning.preflight import public_export_folder
from rudalle_lib.fine_tuning.work_folder import WorkFolder
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.examples import Split, open_examples
from rudalle_lib.training.data.manifest import EncodedData, read_manifest
from rudalle_lib.training.figures import read_figures

RECORD = "fine_tune.json"
"""Name of the record in the output."""


@dataclass(frozen=True, slots=True)
class SourceCount:
    """A dataset that was learnt from: its public URL, its images, and how often each is seen."""

    uri: str
    images: int
    repeats: int


@dataclass(frozen=True, slots=True)
class FineTuneRecord:
    """A finished fine-tuning.

    Attributes:
        name: of the new weights.
        trains: the kind of network.
        base: name of the weights that it started from.
        settings: digest of all that the result depends on, but for the content of the datasets.
        config: the configuration, URLs without secrets.
        base_weights: digests of the weights that were used, by name.
        sources: the datasets.
        images: number of images in all of them together, without rejects.
        held_out: how many of them were held out.
        rejected: number of rows that were not learnt from, by reason.
        steps: optimization steps that were made.
        weights_step: steps after which the network had the exported weights.
        seconds: of training.
        stopped_early: whether the held-out loss had stopped falling.
        first: figures of the first step.
        last: figures of the last step, and of the last measurement.
        held_out_losses: held-out loss by step.
        folder: of the new weights, without secrets.
        files: SHA-256 of the files in it, by path.
        started: ISO 8601.
        finished: ISO 8601.
        versions: of Python and packages.
    """

    name: str
    trains: str
    base: str
    settings: str
    config: Mapping[str, Any]
    base_weights: Mapping[str, str]
    sources: tuple[SourceCount, ...]
    images: int
    held_out: int
    rejected: Mapping[str, int]
    steps: int
    weights_step: int
    seconds: float
    stopped_early: bool
    first: Mapping[str, float]
    last: Mapping[str, float]
    held_out_losses: Mapping[str, float]
    folder: str
    files: Mapping[str, str]
    started: str
    finished: str
    versions: Mapping[str, str]

    def usage(self) -> str:
        """The lines of a run's configuration that use the new weights.

        A decoder draws with the codes of one VQ-GAN, so theirs is named, too, if it is not the one
        that runs have by default.
        """
        base = registered_base(self.config)
        models: dict[str, Any] = {self.name: {"base": base, "folder": self.folder}}
        key = {"decoder": "generate", "vqgan": "decode", "scorer": "score"}[self.trains]
        lines: dict[str, Any] = {key: {"model": self.name}}
        vqgan = str(self.config["vqgan"])
        if self.trains == "decoder" and vqgan != DecodeConfig().model:
            lines["decode"] = {"model": vqgan}
            own = self.config["weights"].get("models", {}).get(vqgan)
            models |= {} if own is None else {vqgan: own}
        text = yaml.safe_dump(
            {"weights": {"models": models}, **lines},
            default_flow_style=None, sort_keys=False, allow_unicode=True, width=math.inf,
        )  # fmt: skip
        return str(text).rstrip()


def registered_base(config: Mapping[str, Any]) -> str:
    """The registered model at the bottom of a fine-tuning, whose base may be fine-tuned itself."""
    base = str(config["base"])
    own = config["weights"].get("models", {}).get(base)
    return base if own is None else str(own["base"])


def settings_digest(config: FineTuneConfig, weights: Mapping[str, str]) -> str:
    """A digest of all that the result depends on, but for the content of the datasets.

    Args:
        config: the fine-tuning.
        weights: digests of the weights that it uses, by name.
    """
    return digest_of([*_identity(config, weights), config.name, config.export_folder])


def training_version(config: FineTuneConfig, weights: Mapping[str, str], data: EncodedData) -> str:
    """16 hex digits that change if a training learns something else: the name of its folder."""
    counts = [[source.repeats, len(source.shards)] for source in data.sources]
    return digest_of([*_identity(config, weights), data.digest(), counts])[:16]


def _identity(config: FineTuneConfig, weights: Mapping[str, str]) -> list[Any]:
    sections = config.training.identity(), config.evaluation.identity()
    return [config.encoding_identity(), *sections, config.seed, sorted(weights.values())]


def open_data(config: FineTuneConfig) -> tuple[EncodedData, Split]:
    """The encoded data of a fine-tuning.

    Raises:
        DamagedError: it is not encoded.
        StorageError: it cannot be read.
    """
    storage = Storage(config.output)
    data = read_manifest(storage)
    if data is None:
        raise DamagedError(f"{storage.public_path()} has no encoded data; run again.")
    return data, open_examples(storage, data, config.encoding.held_out)


def make_record(
    config: FineTuneConfig,
    trained: TrainedWeights,
    weights: Mapping[str, str],
    started: str,
    work: WorkFolder,
) -> FineTuneRecord:
    """The record of a fine-tuning, still without the digests of its files.

    Args:
        config: the fine-tuning, whose data is encoded.
        trained: the finished training.
        weights: digests of the weights that it used, by name.
        started: when the run started, ISO 8601.
        work: where it worked.
    """
    data, split = open_data(config)
    figures = read_figures(work.training)
    measured = [one for one in figures if is_measurement(one)]
    losses = {str(int(one["step"]) + 1): one["held_out_loss"] for one in measured}
    return FineTuneRecord(
        name=config.name,
        trains=config.trains,
        base=config.base_model,
        settings=settings_digest(config, weights),
        config={**config.public_dict(), "base": config.base_model},
        base_weights=weights,
        sources=tuple(
            SourceCount(one.uri, sum(shard.rows for shard in one.shards), one.repeats)
            for one in data.sources
        ),
        images=data.rows,
        held_out=len(split.held_out),
        rejected=data.rejected,
        steps=trained.steps,
        weights_step=trained.weights_step,
        seconds=round(trained.seconds, 3),
        stopped_early=trained.stopped_early,
        first=figures[0],
        last={**(measured[-1] if measured else {}), **figures[-1]},
        held_out_losses=losses,
        folder=public_export_folder(config),
        files={},
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions(),
    )


@dataclass(frozen=True)
class TrainedWeights:
    """A finished training.

    Attributes:
        steps: steps that were made.
        weights_step: steps after which the network had the weights.
        seconds: of training.
        stopped_early: whether the held-out loss had stopped falling.
    """

    steps: int
    weights_step: int
    seconds: float
    stopped_early: bool


def read_trained(work: WorkFolder) -> TrainedWeights:
    """What a finished training says of its result."""
    values: dict[str, Any] = json.loads(work.result.read_text("utf-8"))
    known = ("steps", "weights_step", "seconds", "stopped_early")
    return TrainedWeights(**{key: values[key] for key in known})


def write_record(storage: Storage, record: FineTuneRecord) -> None:
    """Write the record, after everything that it names."""
    storage.commit(RECORD, sealed_json(asdict(record)))


def read_record(storage: Storage) -> FineTuneRecord | None:
    """The record of an output; None if its fine-tuning is not finished.

    Raises:
        DamagedError: the file exists and is no such record.
    """
    content = storage.read_bytes_if_any(RECORD)
    if content is None:
        return None
    try:
        data = unsealed(content)
        sources = tuple(SourceCount(**source) for source in data.pop("sources"))
        return FineTuneRecord(**data, sources=sources)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(
            f"{storage.public_path(RECORD)} is no record of a fine-tuning ({error}); delete it and "
            "run again, which trains nothing twice."
        ) from None
