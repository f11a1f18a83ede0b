"""The registry lists all models, with sizes that the networks accept."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
import torch

from rudalle_lib import registry
from rudalle_lib.errors import ConfigError
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.efficient_unet import EfficientUnet, EfficientUnetConfig
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.ruclip_small import RuClipSmall, RuClipSmallConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig

NETWORKS = {
    "decoder": (Dalle, DalleConfig),
    "vqgan": (VqGan, VqGanConfig),
    "scorer": (RuClip, RuClipConfig),
    "upscaler": (RrdbNet, RrdbNetConfig),
    "segmenter": (EfficientUnet, EfficientUnetConfig),
}

PARAMETERS = {
    "malevich-v3": 1_310_410_880, "malevich-v2": 1_310_410_880, "emojich": 1_310_410_880,
    "surrealist-xl": 1_310_410_880, "kandinsky-12b": 11_519_306_624,
    "vqgan-f8": 68_995_971, "vqgan-f8-dwt": 69_072_140,
    "ruclip-vit-base-patch32-224": 151_277_313, "ruclip-vit-base-patch16-224": 149_620_737,
    "ruclip-vit-large-patch14-224": 427_616_513, "ruclip-vit-large-patch14-336": 427_944_193,
    "ruclip-vit-base-patch32-384": 151_350_273, "ruclip-vit-base-patch16-384": 149_912_577,
    "realesrgan-x2": 16_703_171, "realesrgan-x4": 16_697_987, "realesrgan-x8": 16_734_915,
    # Without the 1,052,672 parameters of a classifier layer that is not used.
    "emojich-unet": 31_216_146 - 1_052_672,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_networks_have_as_many_parameters_as_the_reference(name: str) -> None:
    """Counted in rudalle 1.1.3, ruclip 0.0.2 and segmentation-models-pytorch 0.1.3, on meta."""
    entry = registry.get(name)
    network, config = NETWORKS[entry.kind]
    with torch.device("meta"):
        model = network(config(**entry.architecture))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_every_kind_has_a_demo_model_and_a_published_one() -> None:
    entries = [registry.get(name) for name in registry.names()]
    kinds = set(get_args(registry.Kind))
    packaged = Counter(entry.kind for entry in entries if entry.packaged)
    needless = {"segmenter", "open_clip"}  # demo images need no cut-out and no second score
    assert packaged == dict.fromkeys(kinds - needless, 1)
    assert {e.kind for e in entries if e.repository} == kinds - {"open_clip"}
    assert all((entry.packaged is None) != (entry.repository is None) for entry in entries)
    assert all("weights" in entry.files for entry in entries)


def test_published_decoders_share_one_tokenizer() -> None:
    for name in registry.names("decoder"):
        entry = registry.get(name)
        if entry.repository:
            assert entry.repository_of("tokenizer") == "shonenkov/rudalle-utils"
            assert entry.repository_of("weights") == entry.repository


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'malevic-v3' \(did you mean malevich-v3"):
        registry.get("malevic-v3")
    with pytest.raises(ConfigError) as caught:
        registry.get("dall-e", "decoder")
    assert all(name in str(caught.value) for name in registry.names("decoder"))
    assert "realesrgan" not in str(caught.value)


def test_a_model_of_another_kind_is_rejected() -> None:
    with pytest.raises(ConfigError, match="'vqgan-f8' is a vqgan, expected a decoder; known are"):
        registry.get("vqgan-f8", "decoder")


def test_ruclip_small_is_a_vit_and_a_gpt_with_two_projections() -> None:
    """ViT-B/32 of CLIP has 87,849,216 parameters; GPT-2 with this vocabulary the others."""
    with torch.device("meta"):
        model = RuClipSmall(RuClipSmallConfig(**registry.get("ruclip-small").architecture))
    towers = (model.visual_encoder.model, model.text_encoder.model)
    counts = [sum(p.numel() for p in tower.parameters()) for tower in towers]
    assert counts == [87_849_216, 124_439_808 + (50_264 - 50_257) * 768 + 1024 * 768]


def test_any_pair_of_languages_is_a_translator() -> None:
    entry = registry.get("opus-mt-uk-ru", "translator")
    assert entry.repository == "Helsinki-NLP/opus-mt-uk-ru"
    assert entry.files == registry.get("opus-mt-en-ru").files
    assert entry.languages == ("uk", "ru")
    for name in registry.names("translator"):
        assert registry.get(name).languages == ("en", "ru")
    assert entry.name not in registry.names()
    for name in ("opus-mt-", "opus-mt-en-../ru", "opus-mt-e-ru"):
        with pytest.raises(ConfigError, match="unknown translator"):
            registry.get(name, "translator")
