"""Weights by model name: found in a folder, the package or the hub, verified, and loaded.

Where files are looked for, first to last:

1. `folder` of the configuration: `<folder>/<last part of the repository's name>/<file>`, for
   example `weights/rudalle-Malevich/pytorch_model_v3.bin` and `weights/rudalle-utils/bpe.model`;
   packaged models under their own name, `weights/demo-dalle/model.safetensors`. So a copy of a
   repository can be put there as it is.
2. the package, for the demo models;
3. the Hugging Face hub and its cache; with `offline`, the cache alone.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rudalle_lib import registry
from rudalle_lib.checkpoints import (
    StateDict,
    build,
    load_state_dict,
    without_loss,
    without_masks,
)
from rudalle_lib.config import WeightsConfig
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import WeightsError
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.registry import ModelEntry
from rudalle_lib.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rudalle_lib.translation import Translator

PACKAGED = Path(__file__).parent / "demo" / "weights"
"""Folder of the weights that come with the package."""

FORMER_OWNER, OWNER = "sberbank-ai/", "ai-forever/"
"""The publishers' account was renamed; mirrors and caches may know either name."""

Files = Mapping[str, Path]
Network = TypeVar("Network", bound=torch.nn.Module)
Config = TypeVar("Config")

CPU = torch.device("cpu")
DEFAULT = WeightsConfig()


@dataclasses.dataclass(frozen=True)
class LoadedDecoder:
    """A decoder and the tokenizer of its captions."""

    model: Dalle
    tokenizer: Tokenizer
    entry: ModelEntry


@dataclasses.dataclass(frozen=True)
class LoadedVqGan:
    """A VQ-GAN."""

    model: VqGan
    entry: ModelEntry


@dataclasses.dataclass(frozen=True)
class LoadedScorer:
    """A ruCLIP and the tokenizer of its texts."""

    model: RuClip
    tokenizer: Tokenizer
    entry: ModelEntry


@dataclasses.dataclass(frozen=True)
class LoadedUpscaler:
    """A super-resolution network."""

    model: RrdbNet
    entry: ModelEntry


def load_decoder(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedDecoder:
    """Load a decoder by its registry name.

    Raises:
        ConfigError: no such decoder.
        WeightsError: its files cannot be had, or do not fit.
    """
    entry = registry.get(name, "decoder")
    files = resolve_files(entry, weights)
    model = _load(entry, files, Dalle, DalleConfig, device, dtype, without_masks)
    tokenizer = Tokenizer.load(files["tokenizer"])
    _check_vocabulary(tokenizer, model.config.text_vocab_size - model.config.text_length, entry)
    return LoadedDecoder(model, tokenizer, entry)


def load_vqgan(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedVqGan:
    """Load a VQ-GAN by its registry name; raises as `load_decoder`."""
    entry = registry.get(name, "vqgan")
    files = resolve_files(entry, weights)
    model = _load(entry, files, VqGan, VqGanConfig, device, dtype, without_loss)
    return LoadedVqGan(model, entry)


def load_scorer(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedScorer:
    """Load a ruCLIP by its registry name; raises as `load_decoder`."""
    entry = registry.get(name, "scorer")
    files = resolve_files(entry, weights)
    model = _load(entry, files, RuClip, RuClipConfig, device, dtype)
    tokenizer = Tokenizer.load(files["tokenizer"])
    _check_vocabulary(tokenizer, model.config.vocab_size, entry)
    return LoadedScorer(model, tokenizer, entry)


def load_upscaler(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedUpscaler:
    """Load a super-resolution network by its registry name; raises as `load_decoder`."""
    entry = registry.get(name, "upscaler")
    files = resolve_files(entry, weights)
    model = _load(entry, files, RrdbNet, RrdbNetConfig, device, dtype)
    return LoadedUpscaler(model, entry)


def load_translator(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> "Translator":
    """Load a translator by its registry name; raises as `load_decoder`."""
    from rudalle_lib.translation import Translator  # transformers takes a second to import

    entry = registry.get(name, "translator")
    files = resolve_files(entry, weights)
    return Translator.load(files["weights"].parent, device, dtype)


def resolve_files(entry: ModelEntry, weights: WeightsConfig = DEFAULT) -> dict[str, Path]:
    """Find every file of a model, fetching what is not on this machine; path by role.

    Raises:
        WeightsError: a file cannot be had, or its SHA-256 is not the one in the registry.
    """
    files = {role: _resolve(entry, role, weights) for role in entry.files}
    for role, expected in entry.sha256.items():
        found = file_digest(files[role])
        if found != expected:
            raise WeightsError(
                f"{files[role]} of {entry.name} has SHA-256 {found}, expected {expected}; "
                "delete the file and fetch it again"
            )
    return files


def digest(entry: ModelEntry, files: Files) -> str:
    """32 hex characters that change when the content of any file of a model does."""
    architecture = {key: _plain(value) for key, value in entry.architecture.items()}
    hashes = {role: file_digest(path) for role, path in files.items()}
    return digest_of({"architecture": architecture, "files": hashes})


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex. Kept in this process while path, time and size are the same."""
    status = path.stat()
    return _file_digest(path.resolve(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, _modified: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _resolve(entry: ModelEntry, role: str, weights: WeightsConfig) -> Path:
    repository, filename = entry.repository_of(role), entry.files[role]
    if weights.folder is not None:
        path = Path(weights.folder) / (repository or entry.name).split("/")[-1] / filename
        if path.is_file():
            return path
    if repository is None:
        path = PACKAGED / (entry.packaged or entry.name) / filename
        if path.is_file():
            return path
        raise WeightsError(
            f"the {role} of {entry.name} is not there: expected {path}. "
            "Install the package again, or train the demo models with `make train-demo`"
        )
    return _from_hub(entry, role, repository, weights)


def _from_hub(entry: ModelEntry, role: str, repository: str, weights: WeightsConfig) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    reasons = []
    for candidate in _spellings(repository):
        try:
            return Path(
                hf_hub_download(
                    candidate,
                    entry.files[role],
                    revision=entry.revision,
                    endpoint=weights.endpoint,
                    local_files_only=weights.offline,
                )
            )
        except (RepositoryNotFoundError, LocalEntryNotFoundError) as error:
            reasons.append(f"{candidate}: {_reason(error)}")
        except Exception as error:  # a hub client raises by its transport: too many to name
            reasons.append(f"{candidate}: {_reason(error)}")
            break
    raise WeightsError(_not_found(entry, role, repository, weights, reasons))


def _spellings(repository: str) -> list[str]:
    if not repository.startswith(FORMER_OWNER):
        return [repository]
    return [repository, OWNER + repository.removeprefix(FORMER_OWNER)]


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _not_found(
    entry: ModelEntry, role: str, repository: str, weights: WeightsConfig, reasons: list[str]
) -> str:
    place = Path(weights.folder or "FOLDER") / repository.split("/")[-1] / entry.files[role]
    hint = "set weights.folder to FOLDER and " if weights.folder is None else ""
    offline = "; weights.offline is set, so nothing was downloaded" if weights.offline else ""
    return (
        f"cannot get the {role} of {entry.name}, {entry.files[role]}{offline} "
        f"({'; '.join(reasons)}). To use a file that you have, {hint}put it at {place}"
    )


def _load(
    entry: ModelEntry,
    files: Files,
    network: Callable[[Any], Network],
    config: type[Any],
    device: torch.device,
    dtype: torch.dtype,
    tidy: Callable[[StateDict], StateDict] = lambda state: state,
) -> Network:
    settings = _config(entry, files, config)

    def make() -> Network:
        try:
            return network(settings)
        except (TypeError, ValueError, RuntimeError) as error:
            source = files.get("config", "the registry")
            raise WeightsError(
                f"{entry.name} cannot be built as {source} says: {error}; {settings}"
            ) from error

    state = tidy(load_state_dict(files["weights"]))
    return build(make, state, files["weights"], device, dtype)


def _config(entry: ModelEntry, files: Files, config: type[Config]) -> Config:
    """The configuration of the network: from the model's own file if it has one."""
    source = files.get("config")
    if source is None:
        return config(**entry.architecture)
    try:
        values = json.loads(source.read_text("utf-8"))
        known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
        # The published files may say more, such as the class that wrote them.
        given = {key: value for key, value in values.items() if key in known}
        return config(**{key: _tuple(value) for key, value in given.items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{source} does not describe a {entry.kind}: {error}; expected a JSON object with "
            f"the sizes of {entry.name}"
        ) from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_vocabulary(tokenizer: Tokenizer, expected: int, entry: ModelEntry) -> None:
    if tokenizer.vocab_size > expected:
        raise WeightsError(
            f"the tokenizer of {entry.name} has {tokenizer.vocab_size} pieces, its network knows "
            f"{expected}; the bpe.model does not belong to these weights"
        )
