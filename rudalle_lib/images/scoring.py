"""Score images against texts: the cosine similarity of their ruCLIP features.

Paper: Radford et al., "CLIP", arXiv 2103.00020 (prompt templates in section 3.1.4).
Source: ai-forever/ru-clip, `processor.py` and `predictor.py`. Its RandomResizedCrop with scale 1
and ratio 1 is the same as a centre crop to a square and a bilinear resize. ruCLIP Small
(`deprecated/clip` there) resizes the shorter side with a bicubic filter and then crops, and its
texts are case-sensitive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.images.codecs import from_pil
from rudalle_lib.images.file_threads import files_beside
from rudalle_lib.images.measures import Second, hash_images, pack_embeddings, probe_all
from rudalle_lib.images.resampling import resize, resize_square
from rudalle_lib.images.rows import map_images
from rudalle_lib.images.selection import rank
from rudalle_lib.models.layers.one_by_one import one_by_one
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.ruclip_small import RuClipSmall, RuClipSmallConfig
from rudalle_lib.runtime.batching import FixedRows, OnProgress, no_progress
from rudalle_lib.schema.records import PixelsRecord, ScoreRecord
from rudalle_lib.text.tokenizer import EncodedText

REFERENCE_TEMPLATES = (
    "{}",
    "фото, на котором изображено {}",
    "изображение с {}",
    "картинка с {}",
    "фото с {}",
    "на фото видно {}",
)
"""The six sentences of the original, over which text features are averaged."""

Images = Tensor | Sequence[Image.Image]
"""uint8 [N, 3, H, W], or Pillow images of any mode and size."""

MAX_CPU_BATCH = 16
"""Most images that are made ready at once on a CPU, which encodes them one by one."""


class ClipTokenizer(Protocol):
    """The part of `Tokenizer` and `Gpt2Tokenizer` that a scorer uses."""

    def encode_clip(self, text: str, length: int) -> EncodedText:
        """`[BOS] + bpe + [EOS]`, padded to `length`; a truncated text keeps its EOS."""

    def knows(self, text: str) -> bool:
        """Whether it knows all characters of a text."""


class Scorer:
    """A ruCLIP with its tokenizer, templates and preprocessing.

    It computes on the model's device in the model's dtype. Results are float32 on the CPU.
    """

    def __init__(
        self,
        model: RuClip | RuClipSmall,
        tokenizer: ClipTokenizer,
        templates: Sequence[str] = REFERENCE_TEMPLATES,
        batch_size: int = 64,
    ) -> None:
        """Check the settings and keep the model.

        Args:
            model: in evaluation mode.
            tokenizer: of the same checkpoint.
            templates: one or more sentences with one `{}` in place of the text.
            batch_size: images, or texts, per batch.

        Raises:
            SettingsError: no template, a template without exactly one `{}`, or a batch size below
                1.
        """
        check_settings(templates, batch_size)
        self.model = model
        self.tokenizer = tokenizer
        self.templates = tuple(templates)
        self.batch_size = batch_size
        self._rows = FixedRows(batch_size)
        self._fixed: dict[tuple[str, ...], Tensor] = {}

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit-length features of texts, averaged over the templates.

        Each distinct text is encoded once.

        Returns:
            float32 [N, E] on the CPU.
        """
        texts = [self._normalised(text) for text in texts]
        unique = list(dict.fromkeys(texts))
        row = {text: index for index, text in enumerate(unique)}
        by_template = [self._encode_texts(unique, template) for template in self.templates]
        features = F.normalize(torch.stack(by_template).mean(dim=0), dim=-1)
        return features[[row[text] for text in texts]]

    def fixed_text_features(self, texts: tuple[str, ...]) -> Tensor | None:
        """Like `text_features`, but cached: for texts that are the same in every call.

        Returns:
            float32 [N, E] on the CPU, or None for no texts.
        """
        if texts and texts not in self._fixed:
            self._fixed[texts] = self.text_features(texts)
        return self._fixed.get(texts)

    def probe_features(self, section: ScoreConfig) -> dict[str, Tensor]:
        """Features of the texts of each probe, by name, float32 [M, E]; cached."""
        found = {name: self.fixed_text_features(t) for name, t in section.probe_texts().items()}
        return {name: features for name, features in found.items() if features is not None}

    def can_read(self, text: str) -> bool:
        """Whether the tokenizer knows all characters of a text."""
        return self.tokenizer.knows(self._normalised(text))

    @torch.inference_mode()
    def image_features(self, images: Images) -> Tensor:
        """Unit-length features of images, float32 [N, E] on the CPU."""
        on_cpu = self.model.logit_scale.device.type == "cpu"
        count = min(self.batch_size, MAX_CPU_BATCH) if on_cpu else self.batch_size
        batches = [
            self._encode(self.model.encode_image, self._pixels(images[start : start + count]))
            for start in range(0, len(images), count)
        ]
        return F.normalize(self._collect(batches), dim=-1)

    def score(self, images: Images, texts: Sequence[str]) -> Tensor:
        """The cosine similarity of each image with its own text.

        Args:
            images: N images.
            texts: one per image.

        Returns:
            float32 [N] in [-1, 1] on the CPU.

        Raises:
            ValueError: the number of texts is not that of the images.
        """
        if len(images) != len(texts):
            raise ValueError(
                f"expected one text per image, found {len(texts)} for {len(images)} images"
            )
        return (self.image_features(images) * self.text_features(texts)).sum(dim=-1)

    def _normalised(self, text: str) -> str:
        """A text in the form that the model was trained on: lower case, except ruCLIP Small."""
        return text.strip() if isinstance(self.model, RuClipSmall) else text.lower().strip()

    def _encode_texts(self, texts: Sequence[str], template: str) -> Tensor:
        """Features of texts in one template, float32 [N, E], not of unit length."""
        length = self.model.config.context_length
        device = self.model.logit_scale.device
        batches = []
        for start in range(0, len(texts), self.batch_size):
            sentences = [
                template.replace("{}", text) for text in texts[start : start + self.batch_size]
            ]
            ids = [self.tokenizer.encode_clip(sentence, length).ids for sentence in sentences]
            tokens = torch.tensor(ids, device=device)
            batches.append(self._encode(self.model.encode_text, tokens))
        return self._collect(batches)

    def _encode(self, network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Apply a network so that no result depends on what else is in the batch."""
        return self._rows.apply(partial(one_by_one, network), inputs)

    def _pixels(self, images: Images) -> Tensor:
        """Preprocessed images, float32 [N, 3, R, R] on the model's device."""
        config, device = self.model.config, self.model.logit_scale.device
        if isinstance(images, Tensor):
            return preprocess(images.to(device), config)
        return torch.cat([preprocess(from_pil(image)[None].to(device), config) for image in images])

    def _collect(self, batches: list[Tensor]) -> Tensor:
        if not batches:
            return torch.empty(0, self.model.config.embed_dim)
        return torch.cat(batches).float().cpu()


def preprocess(images: Tensor, config: RuClipConfig | RuClipSmallConfig) -> Tensor:
    """Prepare images for a network: crop to a square, resize like Pillow, and normalise.

    Args:
        images: uint8 [N, 3, H, W].
        config: the network's; gives the resolution R, the mean and the standard deviation.

    Returns:
        float32 [N, 3, R, R], `(pixel / 255 - mean) / std`.
    """
    square = to_square(images, config)
    mean = torch.tensor(tuple(config.mean), device=images.device).view(3, 1, 1)
    std = torch.tensor(tuple(config.std), device=images.device).view(3, 1, 1)
    return (square.float() / 255.0 - mean) / std


def to_square(images: Tensor, config: RuClipConfig | RuClipSmallConfig) -> Tensor:
    """The first step of `preprocess`: uint8 [N, 3, H, W] to uint8 [N, 3, R, R]."""
    small = isinstance(config, RuClipSmallConfig)
    return (_resize_then_crop if small else _crop_then_resize)(images, config.image_resolution)


def _crop_then_resize(images: Tensor, side: int) -> Tensor:
    """Crop to the largest central square, then resize with a bilinear filter."""
    shorter = min(images.shape[2:])
    top, left = (images.shape[2] - shorter) // 2, (images.shape[3] - shorter) // 2
    return resize_square(images[:, :, top : top + shorter, left : left + shorter], side)


def _resize_then_crop(images: Tensor, side: int) -> Tensor:
    """Resize the shorter side with a bicubic filter, then crop to the central square."""
    shorter = min(images.shape[2:])
    height, width = (side * size // shorter for size in images.shape[2:])
    resized = resize(images, height, width, "bicubic")
    top, left = round((height - side) / 2), round((width - side) / 2)
    return resized[:, :, top : top + side, left : left + side]


def check_settings(templates: Sequence[str], batch_size: int) -> None:
    """Check the templates and the batch size of a scorer.

    Raises:
        SettingsError: no template, a template without exactly one `{}`, or a batch size below 1.
    """
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise SettingsError(
            "expected one or more templates with exactly one {} in each, "
            f"found {wrong[0] if wrong else 'none'!r}; change score.templates"
        )
    if batch_size < 1:
        raise SettingsError(f"score.batch_size must be at least 1, found {batch_size}")


def probabilities(images: Tensor, texts: Tensor, negatives: Tensor, logit_scale: float) -> Tensor:
    """The probability of each image's own text among the negative texts.

    Args:
        images: unit-length features of images, float32 [N, E].
        texts: unit-length features of the text of each image, float32 [N, E].
        negatives: unit-length features of the negative texts, float32 [M, E].
        logit_scale: factor of the cosines, the exponential of the model's parameter.

    Returns:
        float32 [N] in [0, 1], a softmax over 1 + M scaled cosines.
    """
    own = (images * texts).sum(dim=1, keepdim=True)  # [N, 1]
    cosines = torch.cat((own, _cosines(images, negatives)), dim=1)  # [N, 1 + M]
    return (logit_scale * cosines).softmax(dim=1)[:, 0]


def _cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines of unit-length features, float32 [N, E] and [M, E], as [N, M]."""
    return one_by_one(lambda features: features @ texts.T, images)


class ImageScores(NamedTuple):
    """The scores of one image.

    Attributes:
        score: cosine with its prompt.
        probability: of its prompt among the negative texts; None without negative texts.
        unsafe: highest cosine with an unsafe text; None without unsafe texts.
        measures: values of the probes, by name.
        embedding: its features as stored; None if they are not kept.
        phash: its perceptual hash; None if it is not kept.
        second_score: cosine by the second scorer; None without one.
    """

    score: float
    probability: float | None
    unsafe: float | None
    measures: Mapping[str, float]
    embedding: bytes | None
    phash: str | None = None
    second_score: float | None = None


def score_rows(
    scorer: Scorer,
    rows: Sequence[PixelsRecord],
    texts: Mapping[str, str],
    section: ScoreConfig,
    on_progress: OnProgress = no_progress,
    second: Second | None = None,
    similarities: Mapping[str, float] | None = None,
) -> list[ScoreRecord]:
    """The score stage: rate how well each image shows its prompt.

    Args:
        scorer: a ruCLIP with the templates of the section.
        rows: decoded images; all must have a file.
        texts: prompts in Russian, by prompt id.
        section: negative and unsafe texts, probes, what else is kept, batch size.
        on_progress: called with the numbers of scored images and of all images.
        second: the second scorer, if there is one.
        similarities: those of prompts and their translations, by prompt id
            (`compare_translations`).

    Returns:
        One row per image, in order.

    Raises:
        OutOfMemoryError: a single image does not fit into memory.
    """
    prompt_ids = [row.prompt_id for row in rows]
    prompt_features = scorer.text_features([texts[name] for name in prompt_ids])  # [N, E]
    other: Tensor | None = None
    if second is not None:
        other = second.model.text_features([second.texts[name] for name in prompt_ids])

    def work(batch: Sequence[int], images: Tensor) -> list[ImageScores]:
        found = compare(scorer, images, prompt_features[list(batch)], section)
        if section.hashes:
            hashes = hash_images(images)
            found = [one._replace(phash=new) for one, new in zip(found, hashes, strict=True)]
        if second is not None and other is not None:
            cosines = (second.model.image_features(images) * other[list(batch)]).sum(dim=1)
            values = cosines.tolist()
            found = [one._replace(second_score=new) for one, new in zip(found, values, strict=True)]
        return found

    what = "scoring a single image"
    files = files_beside(scorer.model.logit_scale.device)
    scores = map_images(rows, section.batch_size, work, what, on_progress, files)
    ranks = rank(prompt_ids, [one.score for one in scores])
    known = similarities or {}
    return [
        ScoreRecord(
            image_id=row.image_id,
            prompt_id=row.prompt_id,
            rank=position,
            translation_similarity=known.get(row.prompt_id),
            **one._asdict(),
        )
        for row, one, position in zip(rows, scores, ranks, strict=True)
    ]


@torch.inference_mode()
def compare(
    scorer: Scorer, images: Tensor, prompt_features: Tensor, section: ScoreConfig
) -> list[ImageScores]:
    """Compare a batch of images with texts.

    Args:
        scorer: a ruCLIP.
        images: uint8 [B, 3, H, W].
        prompt_features: unit-length features of each image's prompt, float32 [B, E] on the CPU.
        section: negative and unsafe texts, probes, and whether embeddings are kept.

    Returns:
        One result per image, in order, without hashes and second scores.
    """
    features = scorer.image_features(images)  # [B, E]
    negatives = scorer.fixed_text_features(section.negative_texts)
    unsafe = scorer.fixed_text_features(section.unsafe_texts)
    scale = float(scorer.model.logit_scale.exp())
    none: Sequence[float | None] = [None] * len(images)
    in_prompt, in_unsafe = none, none
    if negatives is not None:
        in_prompt = probabilities(features, prompt_features, negatives, scale).tolist()
    if unsafe is not None:
        in_unsafe = _cosines(features, unsafe).amax(dim=1).tolist()
    cosines: list[float] = (features * prompt_features).sum(dim=1).tolist()
    probes = probe_all(features, scorer.probe_features(section), scale)
    stored: Sequence[bytes | None] = [None] * len(images)
    if section.embeddings:
        stored = pack_embeddings(features)
    columns = zip(cosines, in_prompt, in_unsafe, probes, stored, strict=True)
    return [ImageScores(*row) for row in columns]
