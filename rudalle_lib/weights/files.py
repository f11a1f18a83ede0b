"""Find the files of a model in a folder, the package or the Hugging Face Hub, and verify them.

Files are searched in this order:

1. `weights.folder` of the configuration: `<folder>/<repository name without owner>/<file>`, for
   example `weights/rudalle-Malevich/pytorch_model_v3.bin` and `weights/rudalle-utils/bpe.model`.
   So a clone of a repository can be put there unchanged. Packaged models use their own name:
   `weights/demo-dalle/model.safetensors`.
2. The package, for the demo models.
3. The Hugging Face Hub and its local cache; with `weights.offline`, only the cache.

Weights of one's own, in `weights.models`, come from their own folder alone (`own_files`).

The token of the Hugging Face Hub is sent only to the hub itself and to the mirror in HF_ENDPOINT,
never to one that a configuration names.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import SettingsError, WeightsError
from rudalle_lib.registry import ModelEntry
from rudalle_lib.storage import bounds
from rudalle_lib.storage.errors import mask_secrets
from rudalle_lib.storage.small_files import read_small_json
from rudalle_lib.storage.urls import Url
from rudalle_lib.weights.digest_cache import file_digest
from rudalle_lib.weights.own_files import check_same_network, own_files

PACKAGED = Path(__file__).parents[1] / "demo" / "weights"
"""Folder of the weights that are part of the package."""

FORMER_OWNER, OWNER = "sberbank-ai/", "ai-forever/"
"""The publisher's account was renamed; mirrors and caches may use either name."""

HUB = "https://huggingface.co"
"""The Hugging Face Hub itself."""

MIRRORS = "mirrors"
"""Folder of the hub's cache with a cache for each mirror that a configuration names.

What such a mirror sends under the name of a repository must not be taken for the hub's own later.
"""

Files = Mapping[str, Path]
"""Path by role, like `ModelEntry.files`."""

DEFAULT_WEIGHTS = WeightsConfig()
"""Search in the package and on the Hugging Face Hub."""


def resolve_files(entry: ModelEntry, weights: WeightsConfig = DEFAULT_WEIGHTS) -> dict[str, Path]:
    """Find all files of a model, and download missing ones.

    Args:
        entry: the model.
        weights: where to search.

    Returns:
        Path by role.

    Raises:
        WeightsError: a file cannot be found or downloaded, or its SHA-256 differs from the
            registry's.
        SettingsError: the environment does not allow the folder or mirror.
    """
    if entry.folder is not None:
        return _resolve_own(entry, weights)
    files = {role: _resolve(entry, role, weights) for role in entry.files}
    for role, expected in entry.sha256.items():
        found = file_digest(files[role])
        if found != expected:
            raise WeightsError(
                f"{files[role]} of {entry.name} has SHA-256 {found}, expected {expected}; "
                "delete the file and download it again"
            )
    return files


def digest(entry: ModelEntry, files: Files) -> str:
    """32 hex digits that change if the content of any file of a model changes."""
    architecture = {key: _plain(value) for key, value in entry.architecture.items()}
    hashes = {role: file_digest(path) for role, path in files.items()}
    return digest_of({"architecture": architecture, "files": hashes})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _resolve_own(entry: ModelEntry, weights: WeightsConfig) -> dict[str, Path]:
    _check_allowed(f"weights.models.{entry.name}.folder", entry.folder or "", bounds.INPUTS)
    files = own_files(entry, weights)
    base = registry.get(entry.base)
    sizes = base.architecture
    try:
        if not sizes and base.kind != "translator":  # its config.json has more than sizes
            sizes = read_small_json(_resolve(base, "config", weights))
        check_same_network(entry, files, sizes, read_small_json(files["config"]))
    except (OSError, ValueError) as error:
        raise WeightsError(f"weights.models.{entry.name}: {error}") from error
    return files


def _resolve(entry: ModelEntry, role: str, weights: WeightsConfig) -> Path:
    repository, filename = entry.repository_of(role), entry.files[role]
    if weights.folder is not None:
        _check_allowed("weights.folder", weights.folder, bounds.INPUTS)
        folder = Path(weights.folder)
        path = folder / (repository or entry.name).split("/")[-1] / filename
        if _is_file(path):
            return path
        if not folder.is_dir():
            raise WeightsError(
                f"weights.folder: {folder} does not exist on this machine; expected a folder with "
                f"{path.relative_to(folder)} for {entry.name}. Without it, files come from the "
                "package and the hub"
            )
    if repository is None:
        path = PACKAGED / (entry.packaged or entry.name) / filename
        if path.is_file():
            return path
        raise WeightsError(
            f"the {role} file of {entry.name} is missing: expected {path}. "
            "Install the package again, or train the demo models with `make train-demo`"
        )
    return _from_hub(entry, role, repository, weights)


def _is_file(path: Path) -> bool:
    """Whether there is a file; an error if something else is in its place."""
    try:
        if path.is_file():
            return True
        in_the_way = path.is_symlink() or path.exists()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    if in_the_way:
        raise WeightsError(
            f"{path} is not a file: it is a folder, a device, or a link that leads nowhere; "
            "remove it, or put the file there"
        )
    return False


def _from_hub(entry: ModelEntry, role: str, repository: str, weights: WeightsConfig) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    endpoint = None if weights.endpoint is None else Url(weights.endpoint).full.rstrip("/")
    trusted = endpoint in (None, HUB, constants.ENDPOINT.rstrip("/"))
    if endpoint is not None:
        _check_allowed("weights.endpoint", endpoint, bounds.ENDPOINTS)
    caches: list[str | None] = [None]
    if endpoint is not None and not trusted:
        own = str(Path(constants.HF_HUB_CACHE) / MIRRORS / digest_of(endpoint)[:16])
        caches = [own, None] if weights.offline else [own]
    reasons = []
    for cache, candidate in itertools.product(caches, _repository_names(repository)):
        try:
            return Path(
                hf_hub_download(
                    candidate,
                    entry.files[role],
                    revision=entry.revision,
                    endpoint=endpoint,
                    cache_dir=cache,
                    token=None if trusted else False,
                    local_files_only=weights.offline,
                )
            )
        except (RepositoryNotFoundError, LocalEntryNotFoundError) as error:
            reasons.append(f"{candidate}: {_first_line(error)}")
        except Exception as error:  # the client raises errors of its HTTP library
            reasons.append(f"{candidate}: {_first_line(error)}")
            break
    reasons = list(dict.fromkeys(reasons))
    raise WeightsError(_not_found(entry, role, repository, weights, reasons))


def _check_allowed(key: str, place: str, variable: str) -> None:
    try:
        bounds.check_allowed(place, variable)
    except bounds.BoundsError as error:
        raise SettingsError(f"{key} is {Url(place)}: {error}") from None


def _repository_names(repository: str) -> list[str]:
    if not repository.startswith(FORMER_OWNER):
        return [repository]
    return [repository, OWNER + repository.removeprefix(FORMER_OWNER)]


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return mask_secrets(lines[0]) if lines else type(error).__name__


def _not_found(
    entry: ModelEntry, role: str, repository: str, weights: WeightsConfig, reasons: list[str]
) -> str:
    place = Path(weights.folder or "FOLDER") / repository.split("/")[-1] / entry.files[role]
    hint = "set weights.folder to FOLDER and " if weights.folder is None else ""
    offline = "; weights.offline is set, so nothing was downloaded" if weights.offline else ""
    return (
        f"cannot get the {role} file of {entry.name}, {entry.files[role]}{offline} "
        f"({'; '.join(reasons)}). To use a local copy, {hint}put it at {place}"
    )
