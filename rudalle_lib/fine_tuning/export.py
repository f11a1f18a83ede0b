"""New weights as files that runs, other tools and people can use.

    NAME/model.safetensors     the weights, with the types of those of the base
    NAME/config.json           sizes of the network
    NAME/bpe.model             the tokenizer, if the network reads texts
    NAME/MODEL_CARD.md         what the weights are, and how they were made
    NAME/published/...         for a published base: the files as they are published

The last folder can be named as `weights.folder`, so that the weights take the place of the base.
Equal weights give equal bytes.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rudalle_lib import registry
from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.registry import ModelEntry
from rudalle_lib.storage.local_files import whole_file
from rudalle_lib.weights.checkpoints import stored_tensors, strip_wrapper_prefix
from rudalle_lib.weights.conversion import safe_file
from rudalle_lib.weights.digest_cache import hash_file
from rudalle_lib.weights.files import resolve_files

CARD = "MODEL_CARD.md"
PUBLISHED = "published"
"""Folder with the files under their published names."""


def write_weights(network: nn.Module, config: FineTuneConfig, folder: Path) -> None:
    """Write all files but the card; a file that exists is replaced when the new one is whole.

    Args:
        network: the result, in float32 on the CPU.
        config: the fine-tuning.
        folder: of the new weights; made if missing.

    Raises:
        WeightsError: the files of the base cannot be read.
    """
    entry = config.weights.find(config.base_model)
    files = resolve_files(entry, config.weights)
    tensors = typed_like(network.state_dict(), files["weights"])
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "model.safetensors") as fresh:
        save_file(tensors, fresh)
    sizes = dataclasses.asdict(network.config)  # type: ignore[call-overload]
    with whole_file(folder / "config.json") as fresh:
        fresh.write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    others = {role: path for role, path in files.items() if role not in ("weights", "config")}
    for path in others.values():
        with whole_file(folder / path.name) as fresh:
            shutil.copyfile(path, fresh)
    base = registry.get(entry.base or entry.name)
    if base.repository is not None:
        write_published(tensors, base, others, folder / PUBLISHED)


def write_published(
    tensors: Mapping[str, Tensor], base: ModelEntry, others: Mapping[str, Path], folder: Path
) -> None:
    """Write the weights and the tokenizer under the names of the published files."""
    weights = _published_path(base, "weights", folder)
    with whole_file(weights) as fresh:
        torch.save(dict(tensors), fresh)
    for role, source in others.items():
        with whole_file(_published_path(base, role, folder)) as fresh:
            shutil.copyfile(source, fresh)


def _published_path(base: ModelEntry, role: str, folder: Path) -> Path:
    repository = base.repository_of(role) or base.name
    path = folder / repository.rpartition("/")[2] / base.files[role]
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def typed_like(state: Mapping[str, Tensor], base: Path) -> dict[str, Tensor]:
    """Tensors with the types of those of the base's file; masks and the like are left out.

    Args:
        state: tensors by name.
        base: weights file of the base.
    """
    stored = strip_wrapper_prefix(dict(stored_tensors(safe_file(base))))
    dtypes = {name: tensor.read().dtype for name, tensor in stored.items() if name in state}
    fallback = max(dtypes.values(), key=list(dtypes.values()).count)
    return {
        name: value.detach().to("cpu", dtypes.get(name, fallback)).contiguous().clone()
        for name, value in state.items()
    }


def write_card(folder: Path, text: str) -> None:
    """Write the model card."""
    with whole_file(folder / CARD) as fresh:
        fresh.write_text(text, encoding="utf-8")


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files of a folder by their path in it."""
    return {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
