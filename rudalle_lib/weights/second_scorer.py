"""The second scorer of a run: a ruCLIP, or a CLIP of the package `open_clip` by its repository.

Source: mlfoundations/open_clip. Its network, tokenizer and preprocessing are the package's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rudalle_lib.config.sections import ScoreConfig, WeightsConfig
from rudalle_lib.errors import SettingsError, WeightsError
from rudalle_lib.images.codecs import to_pil
from rudalle_lib.images.measures import ClipModel, Second
from rudalle_lib.images.scoring import Scorer
from rudalle_lib.runtime.reproducibility import make_reproducible
from rudalle_lib.schema.records import TranslationRecord
from rudalle_lib.storage.small_files import read_small_json
from rudalle_lib.weights.checkpoints import list_tensors
from rudalle_lib.weights.files import Files, resolve_files
from rudalle_lib.weights.loading import LoadedScorer, load_scorer


class OpenClipScorer:
    """A network of `open_clip` with its tokenizer and preprocessing.

    It computes on the network's device in float32. Results are float32 on the CPU.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Callable[[list[str]], Tensor],
        preprocess: Callable[[Image.Image], Tensor],
        batch_size: int = 16,
    ) -> None:
        """Keep the parts.

        Args:
            model: in evaluation mode, with `encode_text` and `encode_image`.
            tokenizer: texts to ids, int64 [N, L].
            preprocess: an image to float32 [3, R, R].
            batch_size: images, or texts, per batch.
        """
        self._model, self._tokenizer, self._preprocess = model, tokenizer, preprocess
        self._batch_size = batch_size

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit-length features of texts, float32 [N, E]; each distinct text is encoded once."""
        unique = list(dict.fromkeys(texts))
        row = {text: index for index, text in enumerate(unique)}
        features = self._encode(unique, self._tokenizer, self._model.encode_text)
        return features[[row[text] for text in texts]]

    @torch.inference_mode()
    def image_features(self, images: Tensor) -> Tensor:
        """Unit-length features of images, uint8 [N, 3, H, W]; float32 [N, E]."""

        def prepare(batch: list[Tensor]) -> Tensor:
            return torch.stack([self._preprocess(to_pil(image)) for image in batch])

        return self._encode(list(images), prepare, self._model.encode_image)

    def _encode(
        self,
        items: list[Any],
        prepare: Callable[[list[Any]], Tensor],
        encode: Callable[..., Tensor],
    ) -> Tensor:
        device = self._model.logit_scale.device
        batches = [
            encode(prepare(items[start : start + self._batch_size]).to(device), normalize=True)
            for start in range(0, len(items), self._batch_size)
        ]
        return torch.cat(batches).float().cpu() if batches else torch.empty(0, 1)


LoadedSecond = LoadedScorer | OpenClipScorer


def load_second_scorer(
    name: str, weights: WeightsConfig, device: torch.device, dtype: torch.dtype
) -> LoadedSecond:
    """Load a second scorer.

    Args:
        name: `score.second_model`.
        weights: where its files come from.
        device: target device.
        dtype: type of the weights of a ruCLIP; a CLIP of `open_clip` computes in float32.

    Raises:
        ConfigError: there is no such scorer.
        SettingsError: the package open_clip is needed and not installed.
        WeightsError: files are missing, cannot be read, or do not fit the network.
    """
    entry = weights.find_second_scorer(name)
    if entry.kind == "scorer":
        return load_scorer(name, weights, device, dtype)
    files = resolve_files(entry, weights)
    check_open_clip(files)
    try:
        import open_clip
    except ImportError:
        raise SettingsError(
            f"score.second_model {name} needs the package open_clip, which is not installed: "
            "pip install 'rudalle-flows[open-clip]'"
        ) from None
    make_reproducible([device])
    folder = f"local-dir:{files['config'].parent}"
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(folder, device=device)
        tokenizer = open_clip.get_tokenizer(folder)
    except Exception as error:  # the package raises bare errors of torch and of others
        first = " ".join(str(error).split())[:300]
        raise WeightsError(f"open_clip cannot load {files['weights']}: {first}") from error
    return OpenClipScorer(model.eval().requires_grad_(False), tokenizer, preprocess)


def check_open_clip(files: Files) -> None:
    """Check the files of a CLIP of `open_clip` without loading it.

    Raises:
        WeightsError: a file is missing or broken.
    """
    try:
        sizes = read_small_json(files["config"]).get("model_cfg")
        if not isinstance(sizes, dict) or not sizes.get("embed_dim"):
            raise ValueError("it has no model_cfg with the sizes of a CLIP")
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {files['config']}: {error}") from error
    list_tensors(files["weights"])


def second_of(
    loaded: LoadedSecond, section: ScoreConfig, translations: Iterable[TranslationRecord]
) -> Second:
    """A second scorer with the texts that it compares images with.

    Args:
        loaded: the network.
        section: templates and batch size of a ruCLIP, and which texts are read.
        translations: the prompts.
    """
    model: ClipModel
    if isinstance(loaded, OpenClipScorer):
        model, usual = loaded, "original"
    else:
        tokenizer = loaded.tokenizer
        model = Scorer(loaded.model, tokenizer, section.templates, section.batch_size)
        usual = "russian"
    chosen = usual if section.second_text == "auto" else section.second_text
    texts = {
        row.prompt_id: row.text if chosen == "original" else row.text_ru or row.text
        for row in translations
    }
    return Second(model, texts)
