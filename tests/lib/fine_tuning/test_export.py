"""New weights as files: equal bytes for equal weights, and the published layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rudalle_lib import registry
from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.fine_tuning.export import (
    file_digests,
    typed_like,
    write_card,
    write_published,
    write_weights,
)
from rudalle_lib.weights.checkpoints import load_state_dict
from rudalle_lib.weights.files import resolve_files
from rudalle_lib.weights.loading import load_decoder

Make = Callable[..., FineTuneConfig]


def test_weights_are_written_and_loaded_again_by_name(make: Make, tmp_path: Path) -> None:
    config = make(tmp_path / "out")
    model = load_decoder("demo-dalle", config.weights, packed=False).model
    with torch.no_grad():
        model.text_embeddings.weight.add_(1.0)
    write_weights(model, config, tmp_path / "mine")
    write_card(tmp_path / "mine", "# mine\n")
    models = {"mine": {"base": "demo-dalle", "folder": str(tmp_path / "mine")}}
    own = WeightsConfig.model_validate({**config.weights.model_dump(), "models": models})
    loaded = load_decoder("mine", own, packed=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    write_weights(model, config, tmp_path / "again")
    digests = file_digests(tmp_path / "mine")
    assert set(digests) == {"model.safetensors", "config.json", "bpe.model", "MODEL_CARD.md"}
    del digests["MODEL_CARD.md"]
    assert file_digests(tmp_path / "again") == digests


def test_tensors_have_the_types_of_those_of_the_base() -> None:
    files = resolve_files(registry.get("demo-vqgan"))
    base = load_state_dict(files["weights"])
    typed = typed_like({name: tensor.float() for name, tensor in base.items()}, files["weights"])
    assert {name: tensor.dtype for name, tensor in typed.items()} == {
        name: tensor.dtype for name, tensor in base.items()
    }


def test_the_published_layout_takes_the_place_of_the_base(tmp_path: Path) -> None:
    tokenizer = tmp_path / "bpe.model"
    tokenizer.write_bytes(b"pieces")
    tensors = {"weight": torch.arange(3.0).half()}
    entry = registry.get("malevich-v3")
    for name in ("one", "two"):
        write_published(tensors, entry, {"tokenizer": tokenizer}, tmp_path / name)
    files = resolve_files(entry, WeightsConfig(folder=str(tmp_path / "one"), offline=True))
    assert files["weights"].name == "pytorch_model_v3.bin"
    assert torch.equal(load_state_dict(files["weights"])["weight"], tensors["weight"])
    assert files["tokenizer"].read_bytes() == b"pieces"
    assert file_digests(tmp_path / "one") == file_digests(tmp_path / "two")
