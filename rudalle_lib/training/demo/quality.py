"""Measure the quality of the demo stack with the classical checker, for the documentation.

Models are loaded and run exactly as in a pipeline run. All prompts contain a (shape, colour,
background) combination that no model has seen in training.

    python -m rudalle_lib.training.demo.quality --out rudalle_lib/demo/quality.json
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.demo.captions import english_caption, english_variant, russian_caption
from rudalle_lib.demo.checker import check
from rudalle_lib.demo.drawing import draw_placements, draw_scene
from rudalle_lib.demo.scenes import Scene, place, random_scene
from rudalle_lib.generation.sampling import generate_tokens
from rudalle_lib.generation.seeds import image_seed
from rudalle_lib.images.scoring import Scorer
from rudalle_lib.images.upscaling import upscale
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.text.translation import Translator
from rudalle_lib.training.demo.samples import SETTINGS, to_uint8
from rudalle_lib.weights.loading import (
    load_decoder,
    load_scorer,
    load_translator,
    load_upscaler,
    load_vqgan,
)

Figures = dict[str, float | int | dict[str, int]]
"""Measured figures by name."""

Images = NDArray[np.uint8]
"""uint8 [N, H, W, 3]."""

SEED = 20211103
"""Seed of all scenes and samples."""

TEMPLATES = ("{}",)
"""Templates of ruCLIP: the caption alone."""

log = logging.getLogger(__name__)


def scenes_of(seed: int, count: int, held_out: bool = True) -> list[Scene]:
    """Return random test scenes, by default each with a held-out combination."""
    rng = random.Random(seed)
    return [random_scene(rng, held_out) for _ in range(count)]


def render(scenes: Sequence[Scene], seed: int) -> Images:
    """Draw the true image of each scene. Returns uint8 [N, 128, 128, 3]."""
    rng = random.Random(seed)
    return np.stack([draw_scene(scene, rng) for scene in scenes])


def agreed(images: Images, scenes: Sequence[Scene]) -> NDArray[np.bool_]:
    """Return which images show their scene, according to the checker. bool [N]."""
    return np.array([check(i, s).ok for i, s in zip(images, scenes, strict=True)])


def chw(images: Images) -> Tensor:
    """Convert uint8 [N, H, W, 3] to uint8 [N, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def psnr(images: Tensor, truth: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB of uint8 images [N, 3, H, W]."""
    error = (images.float() - truth.float()).pow(2).flatten(1).mean(1)
    return float((10 * torch.log10(255**2 / error.clamp(min=1e-3))).mean())


def measure_checker(count: int) -> Figures:
    """Measure the checker on true images, which bounds all other figures."""
    scenes = scenes_of(SEED, count)
    return {"checker_true_renders": float(agreed(render(scenes, SEED), scenes).mean())}


def measure_vqgan(vqgan: VqGan, count: int) -> Figures:
    """Measure the reconstruction of held-out combinations."""
    scenes = scenes_of(SEED + 1, count)
    truth = render(scenes, SEED + 1)
    reconstructed = np.concatenate(
        [
            to_uint8(vqgan.decode(vqgan.encode(part.float() / 127.5 - 1)))
            for part in chw(truth).split(16)
        ]
    )
    return {
        "vqgan_psnr_db": psnr(chw(reconstructed), chw(truth)),
        "vqgan_round_trip_agreement": float(agreed(reconstructed, scenes).mean()),
    }


def draw(
    vqgan: VqGan,
    scenes: Sequence[Scene],
    replicas: int,
    weights: WeightsConfig,
    name: str = "demo-dalle",
) -> Images:
    """Draw candidates for each scene from its caption, with the decoder of a name.

    Returns:
        uint8 [N, replicas, 128, 128, 3].
    """
    decoder = load_decoder(name, weights)
    length = decoder.model.config.text_length
    text = [decoder.tokenizer.encode_text(russian_caption(s), length).ids for s in scenes]
    prompt_index = torch.arange(len(scenes)).repeat_interleave(replicas)
    seeds = [image_seed(SEED, str(p), r) for p in range(len(scenes)) for r in range(replicas)]
    drawn = generate_tokens(
        decoder.model, torch.tensor(text), prompt_index, torch.tensor(seeds), SETTINGS, 128
    )
    grid = drawn.tokens.unflatten(1, (16, 16))
    images = np.concatenate([to_uint8(vqgan.decode(part)) for part in grid.split(32)])
    return images.reshape(len(scenes), replicas, *images.shape[1:])


def measure_decoder(
    vqgan: VqGan, scorer: Scorer, prompts: int, replicas: int, weights: WeightsConfig
) -> Figures:
    """Measure agreement of prompt and image: one sample, the best by ruCLIP, any of several."""
    scenes = scenes_of(SEED + 2, prompts)
    images = draw(vqgan, scenes, replicas, weights)
    verdicts = [[check(i, s) for i in row] for row, s in zip(images, scenes, strict=True)]
    good = np.array([[verdict.ok for verdict in row] for row in verdicts])
    captions = [russian_caption(s) for s in scenes for _ in range(replicas)]
    scores = scorer.score(chw(images.reshape(-1, *images.shape[2:])), captions)
    best = scores.numpy().reshape(prompts, replicas).argmax(1)
    problems = Counter(name for row in verdicts for verdict in row for name in verdict.problems)
    seen = scenes_of(SEED + 3, prompts, held_out=False)
    return {
        "prompts": prompts,
        "replicas": replicas,
        "agreement_one_sample": float(good.mean()),
        "agreement_best_of_replicas": float(good[np.arange(prompts), best].mean()),
        "agreement_any_of_replicas": float(good.any(1).mean()),
        "agreement_one_sample_seen": float(
            agreed(draw(vqgan, seen, 1, weights)[:, 0], seen).mean()
        ),
        **within_prompt_auc(scores.numpy().reshape(good.shape), good),
        "problems": dict(problems.most_common()),
    }


def within_prompt_auc(scores: NDArray[np.float32], good: NDArray[np.bool_]) -> dict[str, float]:
    """Return how often a good image scores above a bad image of the same prompt.

    Args:
        scores: float32 [prompts, replicas].
        good: bool [prompts, replicas].

    Returns:
        The mean over all prompts that have both, or nothing if there are none.
    """
    wins = [
        float((row[ok][:, None] > row[~ok][None, :]).mean())
        for row, ok in zip(scores, good, strict=True)
        if ok.any() and not ok.all()
    ]
    return {"ruclip_auc_within_prompt": float(np.mean(wins))} if wins else {}


def measure_ruclip(scorer: Scorer, sets: int) -> Figures:
    """Measure how often the right one of 64 distinct captions is the likeliest for a true image."""
    right = 0
    for index in range(sets):
        by_caption: dict[str, Scene] = {}
        for scene in scenes_of(SEED + 100 + index, 400):
            by_caption.setdefault(russian_caption(scene), scene)
        scenes = list(by_caption.values())[:64]
        images = scorer.image_features(chw(render(scenes, SEED + index)))
        texts = scorer.text_features([russian_caption(scene) for scene in scenes])
        right += int(((images @ texts.T).argmax(1) == torch.arange(64)).sum())
    return {"ruclip_right_of_64": right / (64 * sets)}


def measure_upscaler(count: int, weights: WeightsConfig) -> Figures:
    """Measure PSNR against renders of twice the size, and the gain over bicubic."""
    rng = random.Random(SEED + 4)
    small, large = [], []
    for scene in scenes_of(SEED + 4, count):
        placements = place(scene, rng)
        small.append(draw_placements(scene.background, placements))
        large.append(draw_placements(scene.background, placements, scale=2))
    inputs, truth = chw(np.stack(small)), chw(np.stack(large))
    model = load_upscaler("demo-realesrgan-x2", weights).model
    bicubic = F.interpolate(inputs.float(), scale_factor=2, mode="bicubic").round().clamp(0, 255)
    ours = psnr(upscale(model, inputs, batch_size=8), truth)
    return {"upscaler_psnr_db": ours, "upscaler_gain_over_bicubic_db": ours - psnr(bicubic, truth)}


def measure_translator(translator: Translator, count: int) -> Figures:
    """Measure how many English captions are translated into exactly the Russian caption."""
    scenes, rng = scenes_of(SEED + 5, count), random.Random(SEED)
    expected = [russian_caption(scene) for scene in scenes]
    canonical = translator.translate([english_caption(scene) for scene in scenes], "en")
    varied = translator.translate([english_variant(scene, rng) for scene in scenes], "en")

    def exact(translated: Sequence[str | None]) -> float:
        return sum(a == b for a, b in zip(translated, expected, strict=True)) / count

    return {"translation_exact": exact(canonical), "translation_variants_exact": exact(varied)}


def measure(prompts: int = 200, replicas: int = 8, weights: WeightsConfig | None = None) -> Figures:
    """Measure all figures. The sizes of all samples are proportional to `prompts`."""
    weights = weights or WeightsConfig()
    vqgan = load_vqgan("demo-vqgan", weights).model
    loaded = load_scorer("demo-ruclip", weights)
    scorer = Scorer(loaded.model, loaded.tokenizer, TEMPLATES)
    figures: Figures = {}
    parts: tuple[Callable[[], Figures], ...] = (
        lambda: measure_checker(5 * prompts),
        lambda: measure_vqgan(vqgan, 2 * prompts),
        lambda: measure_ruclip(scorer, max(1, prompts // 20)),
        lambda: measure_upscaler(max(8, prompts // 4), weights),
        lambda: measure_translator(load_translator("demo-marian", weights), 2 * prompts),
        lambda: measure_decoder(vqgan, scorer, prompts, replicas, weights),
    )
    for part in parts:
        new = part()
        log.info("%s", new)
        figures.update(new)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts to draw")
    parser.add_argument("--replicas", type=int, default=8, help="images per prompt")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures = measure(options.prompts, options.replicas)
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    options.out.write_text(json.dumps(rounded, indent=2) + "\n")


if __name__ == "__main__":
    main()
