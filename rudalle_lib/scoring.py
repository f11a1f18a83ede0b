"""Scores of pictures against texts: the cosine of their ruCLIP features.

Paper: Radford et al., arXiv 2103.00020 (prompt templates in section 3.1.4).
Original: ai-forever/ru-clip, `processor.py` and `predictor.py`. Its RandomResizedCrop with scale 1
and ratio 1 is a centre crop to a square and a bilinear resize, which is what is done here. ruCLIP
Small (`deprecated/clip` there) resizes the shorter side by a cubic filter, then crops, and tells
capitals from small letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rudalle_lib.errors import SettingsError
from rudalle_lib.images import from_pil
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.ruclip_small import RuClipSmall, RuClipSmallConfig
from rudalle_lib.resampling import resize, resize_square
from rudalle_lib.tokenizer import EncodedText

#: The six sentences of the reference, over which text features are averaged.
REFERENCE_TEMPLATES = (
    "{}",
    "фото, на котором изображено {}",
    "изображение с {}",
    "картинка с {}",
    "фото с {}",
    "на фото видно {}",
)

Images = Tensor | Sequence[Image.Image]
"""uint8 [N, 3, H, W], or Pillow images of any mode and size."""


CPU_AT_ONCE = 16
"""Pictures that go through the network at once on a CPU: the tensors of more are given fresh memory
with every layer, which takes a fifth of the time."""


class ClipTokenizer(Protocol):
    """What a scorer needs of a `Tokenizer` or a `Gpt2Tokenizer`."""

    def encode_clip(self, text: str, length: int) -> EncodedText:
        """`[BOS] + bpe + [EOS]`, padded to `length`; a cut text keeps its EOS."""


class Scorer:
    """A ruCLIP with its tokenizer, templates and preprocessing.

    Runs on the device and in the dtype that the model is in; scores are float32 on the CPU.
    """

    def __init__(
        self,
        model: RuClip | RuClipSmall,
        tokenizer: ClipTokenizer,
        templates: Sequence[str] = REFERENCE_TEMPLATES,
        batch_size: int = 64,
    ) -> None:
        """Check the templates.

        Args:
            model: in evaluation mode.
            tokenizer: of the same checkpoint.
            templates: sentences with one `{}` in place of the text; at least one.
            batch_size: pictures, or texts, that go through the network at once.

        Raises:
            SettingsError: a template without `{}`, none at all, or a batch size below 1.
        """
        check_settings(templates, batch_size)
        self.model = model
        self.tokenizer = tokenizer
        self.templates = tuple(templates)
        self.batch_size = batch_size

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features of texts, averaged over the templates: float32 [N, E] on the CPU.

        Each distinct text goes through the network once.
        """
        texts = [self._normalised(text) for text in texts]
        unique = list(dict.fromkeys(texts))
        row = {text: index for index, text in enumerate(unique)}
        by_template = [self._encode_texts(unique, template) for template in self.templates]
        features = F.normalize(torch.stack(by_template).mean(dim=0), dim=-1)
        return features[[row[text] for text in texts]]

    @torch.inference_mode()
    def image_features(self, images: Images) -> Tensor:
        """Unit features of pictures, float32 [N, E] on the CPU."""
        on_cpu = self.model.logit_scale.device.type == "cpu"
        count = min(self.batch_size, CPU_AT_ONCE) if on_cpu else self.batch_size
        batches = [
            self.model.encode_image(self._pixels(images[start : start + count]))
            for start in range(0, len(images), count)
        ]
        return F.normalize(self._collect(batches), dim=-1)

    def score(self, images: Images, texts: Sequence[str]) -> Tensor:
        """The cosine of each picture with its own text: float32 [N] in [-1, 1].

        Raises:
            ValueError: not exactly one text a picture.
        """
        if len(images) != len(texts):
            raise ValueError(
                f"expected one text a picture, found {len(texts)} for {len(images)} pictures"
            )
        return (self.image_features(images) * self.text_features(texts)).sum(dim=-1)

    def _normalised(self, text: str) -> str:
        """A text as its model was trained on; only ruCLIP Small tells capitals."""
        return text.strip() if isinstance(self.model, RuClipSmall) else text.lower().strip()

    def _encode_texts(self, texts: Sequence[str], template: str) -> Tensor:
        """float32 [N, E], not of unit length."""
        length = self.model.config.context_length
        device = self.model.logit_scale.device
        batches = []
        for start in range(0, len(texts), self.batch_size):
            sentences = [
                template.replace("{}", text) for text in texts[start : start + self.batch_size]
            ]
            ids = [self.tokenizer.encode_clip(sentence, length).ids for sentence in sentences]
            batches.append(self.model.encode_text(torch.tensor(ids, device=device)))
        return self._collect(batches)

    def _pixels(self, images: Images) -> Tensor:
        """float32 [N, 3, R, R], normalised, on the model's device."""
        config, device = self.model.config, self.model.logit_scale.device
        if isinstance(images, Tensor):
            return preprocess(images.to(device), config)
        return torch.cat([preprocess(from_pil(image)[None].to(device), config) for image in images])

    def _collect(self, batches: list[Tensor]) -> Tensor:
        if not batches:
            return torch.empty(0, self.model.config.embed_dim)
        return torch.cat(batches).float().cpu()


def preprocess(images: Tensor, config: RuClipConfig | RuClipSmallConfig) -> Tensor:
    """Pictures uint8 [N, 3, H, W] to what a network sees: normalised float32 [N, 3, R, R].

    A square of its size, resized as Pillow does it, then `(pixel / 255 - mean) / std`.
    """
    cut = _resize_then_crop if isinstance(config, RuClipSmallConfig) else _crop_then_resize
    square = cut(images, config.image_resolution)
    mean = torch.tensor(tuple(config.mean), device=images.device).view(3, 1, 1)
    std = torch.tensor(tuple(config.std), device=images.device).view(3, 1, 1)
    return (square.float() / 255.0 - mean) / std


def _crop_then_resize(images: Tensor, side: int) -> Tensor:
    """The largest central square, bilinearly: [N, 3, H, W] to [N, 3, side, side]."""
    shorter = min(images.shape[2:])
    top, left = (images.shape[2] - shorter) // 2, (images.shape[3] - shorter) // 2
    return resize_square(images[:, :, top : top + shorter, left : left + shorter], side)


def _resize_then_crop(images: Tensor, side: int) -> Tensor:
    """The shorter side by a cubic filter, then the centre: [N, 3, H, W] to [N, 3, side, side]."""
    shorter = min(images.shape[2:])
    height, width = (side * size // shorter for size in images.shape[2:])
    resized = resize(images, height, width, "bicubic")
    top, left = round((height - side) / 2), round((width - side) / 2)
    return resized[:, :, top : top + side, left : left + side]


def check_settings(templates: Sequence[str], batch_size: int) -> None:
    """Raise SettingsError unless every template has a place for the text."""
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise SettingsError(
            "expected one or more templates with exactly one {} in each, "
            f"found {wrong[0] if wrong else 'none'!r}; change score.templates"
        )
    if batch_size < 1:
        raise SettingsError(f"score.batch_size must be at least 1, found {batch_size}")
