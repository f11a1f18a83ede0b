"""The files of a model by name: found in a folder, the package or the hub, and verified.

Where files are looked for, first to last:

1. `folder` of the configuration: `<folder>/<last part of the repository's name>/<file>`, for
   example `weights/rudalle-Malevich/pytorch_model_v3.bin` and `weights/rudalle-utils/bpe.model`;
   packaged models under their own name, `weights/demo-dalle/model.safetensors`. So a copy of a
   repository can be put there as it is.
2. the package, for the demo models;
3. the Hugging Face hub and its cache; with `offline`, the cache alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rudalle_lib.config import WeightsConfig
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import WeightsError
from rudalle_lib.registry import ModelEntry
from rudalle_lib.weight_records import file_digest

PACKAGED = Path(__file__).parent / "demo" / "weights"
"""Folder of the weights that come with the package."""

FORMER_OWNER, OWNER = "sberbank-ai/", "ai-forever/"
"""The publishers' account was renamed; mirrors and caches may know either name."""

Files = Mapping[str, Path]
"""Path by role, as in `ModelEntry.files`."""

DEFAULT = WeightsConfig()


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
