"""All models by name: where their weights are, and the sizes of their networks.

This is the only file that names weight repositories. To add a model with an existing network, add
an entry here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from rudalle_lib.errors import ConfigError
from rudalle_lib.humanize import did_you_mean

Kind = Literal["decoder", "vqgan", "scorer", "upscaler", "segmenter", "translator", "open_clip"]

UTILS = "shonenkov/rudalle-utils"
"""The repository with the VQ-GANs and the tokenizer of all published decoders."""

RUGPT3 = "sberbank-ai/rugpt3small_based_on_gpt2"
"""The repository with the configuration and tokenizer of ruCLIP Small's text tower."""

OPEN_CLIP = re.compile(r"open_clip:([\w.-]+/[\w.-]+)")
"""Names of networks of the package open_clip, with their repository."""

MARIAN_PAIR = re.compile(r"opus-mt-([A-Za-z]{2,3})-([A-Za-z]{2,3})")
"""Names of Marian translators, with the codes of their two languages."""

CODE_ONLY = "not stated on the model page (code: Apache-2.0)"
"""Licence of weights for which only the licence of the code is known."""


def is_stated(licence: str) -> bool:
    """Whether the licence of some weights is known, and not only that of the code."""
    return not licence.startswith("not stated")


def _frozen(**items: Any) -> Mapping[str, Any]:
    return MappingProxyType(items)


@dataclass(frozen=True)
class ModelEntry:
    """One model.

    Attributes:
        name: name in configurations.
        kind: which network it is.
        about: description of one line.
        repository: Hugging Face repository `owner/name`; None for a packaged model.
        revision: branch, tag or commit of the repository.
        files: file name by role ("weights", "config", "tokenizer", ...).
        elsewhere: repository by role, for files that are not in `repository`.
        architecture: arguments of the network's configuration; values in a file with the role
            "config" override them.
        licence: licence of the weights.
        sha256: hex digest by role, for files whose digest is known; they are verified.
        packaged: folder in `rudalle_lib/demo/weights`, or None.
        languages: codes of the languages that a translator reads and writes; empty for other
            kinds.
        base: for weights of one's own, the registered model whose network they have.
        folder: for weights of one's own, the folder or URL of their files.
    """

    name: str
    kind: Kind
    about: str
    files: Mapping[str, str]
    repository: str | None = None
    revision: str = "main"
    elsewhere: Mapping[str, str] = field(default_factory=_frozen)
    architecture: Mapping[str, Any] = field(default_factory=_frozen)
    licence: str = CODE_ONLY
    sha256: Mapping[str, str] = field(default_factory=_frozen)
    packaged: str | None = None
    languages: tuple[str, str] = ("", "")
    base: str = ""
    folder: str | None = None

    def repository_of(self, role: str) -> str | None:
        """The repository that contains the file of a role; None for packaged models."""
        return self.elsewhere.get(role, self.repository)


NONE: Mapping[str, ModelEntry] = _frozen()
"""No weights of one's own."""


def get(name: str, kind: Kind | None = None, own: Mapping[str, ModelEntry] = NONE) -> ModelEntry:
    """Find a model by name.

    Args:
        name: a name from `names`, or any OPUS-MT pair of languages, such as opus-mt-uk-ru.
        kind: the required kind; None accepts all.
        own: weights of one's own by name, which no registered model has.

    Raises:
        ConfigError: there is no such model, or it is of another kind; lists the known names.
    """
    entry = _ENTRIES.get(name) or _marian_pair(name) or own.get(name)
    if entry is not None and kind in (None, entry.kind):
        return entry
    known = [*names(kind), *(one.name for one in own.values() if kind in (None, one.kind))]
    what = kind or "model"
    if entry is not None:
        raise ConfigError(
            f"{name!r} is a {entry.kind}, expected a {what}; known are {', '.join(known)}"
        )
    hint = did_you_mean(name, known)
    raise ConfigError(f"unknown {what} {name!r}{hint}; known are {', '.join(known)}")


def is_registered(name: str) -> bool:
    """Whether a name is that of a registered model, or of an OPUS-MT pair."""
    return name in _ENTRIES or MARIAN_PAIR.fullmatch(name) is not None


def second_scorer(name: str, own: Mapping[str, ModelEntry] = NONE) -> ModelEntry:
    """Find a second scorer: a ruCLIP, or `open_clip:` with a repository in open_clip's layout.

    Args:
        name: a name from `names`, of weights of one's own, or with `open_clip:`.
        own: weights of one's own by name.

    Raises:
        ConfigError: there is no such scorer; lists the known names.
    """
    repository = OPEN_CLIP.fullmatch(name)
    if repository is None:
        return get(name, "scorer", own)
    return ModelEntry(
        name, "open_clip", "a CLIP of the package open_clip",
        _frozen(weights="open_clip_model.safetensors", config="open_clip_config.json"),
        repository[1], licence="not known here",
    )  # fmt: skip


def from_folder(name: str, base: str, folder: str) -> ModelEntry:
    """The entry of weights of one's own.

    Args:
        name: their name.
        base: the registered model whose network they have.
        folder: folder or URL with `model.safetensors`, `config.json` and the files of the
            tokenizer, as `rudalle-flows fine-tune` writes them.

    Raises:
        ConfigError: there is no such registered model.
    """
    entry = get(base)
    files = {role: file.rpartition("/")[2] for role, file in entry.files.items()}
    return replace(
        entry, name=name, about=f"weights of your own with the network of {base}",
        files=_frozen(**{**files, "weights": "model.safetensors", "config": "config.json"}),
        repository=None, packaged=None, elsewhere=_frozen(), sha256=_frozen(),
        base=base, folder=folder,
    )  # fmt: skip


def names(kind: Kind | None = None) -> list[str]:
    """Names of all models of a kind, or of all models, in the order of the registry."""
    return [entry.name for entry in _ENTRIES.values() if kind in (None, entry.kind)]


def _packaged() -> Iterator[ModelEntry]:
    weights = {"weights": "model.safetensors", "config": "config.json"}
    with_tokenizer = {**weights, "tokenizer": "bpe.model"}
    marian = {
        **weights,
        "source": "source.spm",
        "target": "target.spm",
        "vocabulary": "vocab.json",
    }
    rows: tuple[tuple[str, Kind, dict[str, str], str], ...] = (
        ("demo-dalle", "decoder", with_tokenizer, "draws Suprematist images of 128 px"),
        ("demo-vqgan", "vqgan", weights, "16x16 tokens to 128 px, trained on Suprematist images"),
        ("demo-ruclip", "scorer", with_tokenizer, "scores Suprematist images"),
        ("demo-realesrgan-x2", "upscaler", weights, "128 to 256 px, for Suprematist images"),
        ("demo-marian", "translator", marian, "English to Russian, about Suprematist images"),
    )
    for name, kind, files, about in rows:
        yield ModelEntry(
            name, kind, about, _frozen(**files), licence="Apache-2.0", packaged=name,
            languages=("en", "ru") if kind == "translator" else ("", ""),
        )  # fmt: skip


_XL = _frozen(
    num_layers=24, hidden_size=2048, num_heads=16, text_vocab_size=16384 + 128, text_length=128,
    image_vocab_size=8192, image_height=32, image_width=32,
)  # fmt: skip
_XXL = _frozen(**{**_XL, "num_layers": 64, "hidden_size": 3840, "num_heads": 60})


def _decoders() -> Iterator[ModelEntry]:
    rows = (
        ("malevich-v3", "sberbank-ai/rudalle-Malevich", "pytorch_model_v3.bin", _XL, "v3",
         "ruDALL-E Malevich (XL), 1.3 billion parameters"),
        ("malevich-v2", "sberbank-ai/rudalle-Malevich", "pytorch_model_v2.bin", _XL, "v2",
         "ruDALL-E Malevich (XL), the earlier checkpoint"),
        ("emojich", "sberbank-ai/rudalle-Emojich", "pytorch_model.bin", _XL, "v2",
         "Malevich tuned to draw emoji"),
        ("surrealist-xl", "shonenkov-AI/rudalle-xl-surrealist", "pytorch_model.bin", _XL, "v3",
         "Malevich tuned to surrealism"),
        ("kandinsky-12b", "sberbank-ai/rudalle-Kandinsky", "pytorch_model.bin", _XXL, "v3",
         "ruDALL-E Kandinsky (XXL), 12 billion parameters"),
    )  # fmt: skip
    for name, repository, filename, sizes, version, about in rows:
        yield ModelEntry(
            name, "decoder", about, _frozen(weights=filename, tokenizer="bpe.model"), repository,
            elsewhere=_frozen(tokenizer=UTILS), architecture=_frozen(**sizes, version=version),
        )  # fmt: skip


def _vqgans() -> Iterator[ModelEntry]:
    sizes = dict(
        resolution=256, ch=128, ch_mult=(1, 1, 2, 4), num_res_blocks=2,
        attention_resolutions=(32,), z_channels=256, embed_dim=256, n_embed=8192,
    )  # fmt: skip
    for name, middle, dwt, about in (
        ("vqgan-f8", "", False, "32x32 tokens to 256 px"),
        ("vqgan-f8-dwt", "-dwt", True, "32x32 tokens to 512 px through a wavelet transform"),
    ):
        yield ModelEntry(
            name, "vqgan", about, _frozen(weights=f"vqgan.gumbelf8-sber{middle}.model.ckpt"),
            UTILS, architecture=_frozen(**sizes, dwt=dwt),
        )  # fmt: skip


_CLIP_BASE = _frozen(
    embed_dim=512, vision_layers=12, vision_width=768, context_length=77, vocab_size=49408,
    transformer_width=512, transformer_heads=8, transformer_layers=12,
)  # fmt: skip
_CLIP_LARGE = _frozen(
    embed_dim=768, vision_layers=24, vision_width=1024, context_length=77, vocab_size=49408,
    transformer_width=768, transformer_heads=12, transformer_layers=12,
)  # fmt: skip


def _scorers() -> Iterator[ModelEntry]:
    files = _frozen(weights="pytorch_model.bin", config="config.json", tokenizer="bpe.model")
    for size, sizes, patch, side in (
        ("base", _CLIP_BASE, 32, 224),
        ("base", _CLIP_BASE, 16, 224),
        ("large", _CLIP_LARGE, 14, 224),
        ("large", _CLIP_LARGE, 14, 336),
        ("base", _CLIP_BASE, 32, 384),
        ("base", _CLIP_BASE, 16, 384),
    ):
        name = f"ruclip-vit-{size}-patch{patch}-{side}"
        yield ModelEntry(
            name, "scorer", f"ruCLIP {size}, patches of {patch} px in {side} px", files,
            f"sberbank-ai/{name}",
            architecture=_frozen(**sizes, vision_patch_size=patch, image_resolution=side),
        )  # fmt: skip
    yield ModelEntry(
        "ruclip-small", "scorer", "the first ruCLIP, with ruGPT-3 Small reading the texts",
        _frozen(weights="ViT-B32-small.pt", config="config.json", vocabulary="vocab.json",
                merges="merges.txt"),
        "sberbank-ai/ru-clip",
        elsewhere=_frozen(config=RUGPT3, vocabulary=RUGPT3, merges=RUGPT3),
        architecture=_frozen(embed_dim=1024, vision_dim=512, context_length=128, eos_id=2),
    )  # fmt: skip


def _upscalers() -> Iterator[ModelEntry]:
    for scale in (2, 4, 8):
        yield ModelEntry(
            f"realesrgan-x{scale}", "upscaler", f"Real-ESRGAN, images {scale} times the side",
            _frozen(weights=f"RealESRGAN_x{scale}.pth"), "sberbank-ai/Real-ESRGAN",
            architecture=_frozen(scale=scale, num_features=64, num_blocks=23, growth=32),
            licence="not stated on the model page (code: BSD-3-Clause)",
        )  # fmt: skip


def _segmenters() -> Iterator[ModelEntry]:
    yield ModelEntry(
        "emojich-unet", "segmenter", "tells emoji from their background, for stickers",
        _frozen(weights="unet_effnetb5/pytorch_model_v2.bin"), "sberbank-ai/rudalle-Emojich",
        architecture=_frozen(
            width=1.6, depth=2.2, decoder_channels=(256, 128, 64, 32, 16), classes=2
        ),
    )  # fmt: skip


def _translators() -> Iterator[ModelEntry]:
    yield _marian("opus-mt-en-ru", "English to Russian, any text", "Apache-2.0")


def _marian_pair(name: str) -> ModelEntry | None:
    """The entry of an unlisted Marian network; there are over a thousand."""
    pair = MARIAN_PAIR.fullmatch(name)
    if pair is None:
        return None
    return _marian(name, f"{pair[1]} to {pair[2]}, any text", "not known here")


def _marian(name: str, about: str, licence: str) -> ModelEntry:
    files = _frozen(
        weights="pytorch_model.bin", config="config.json", source="source.spm",
        target="target.spm", vocabulary="vocab.json",
    )  # fmt: skip
    source, target = name.lower().split("-")[-2:]
    return ModelEntry(
        name, "translator", about, files, f"Helsinki-NLP/{name}", licence=licence,
        languages=(source, target),
    )  # fmt: skip


_ENTRIES: Mapping[str, ModelEntry] = MappingProxyType(
    {
        entry.name: entry
        for group in (
            _packaged,
            _decoders,
            _vqgans,
            _scorers,
            _upscalers,
            _segmenters,
            _translators,
        )
        for entry in group()
    }
)
