"""A gallery of any size with drawn Suprematist scenes, made without any model."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from PIL import Image

from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.drawing import draw_scene
from rudalle_lib.demo.scenes import Scene, random_scene
from rudalle_lib.report.gallery_data import CHUNK_SIZE, as_data_uri
from rudalle_lib.report.gallery_page import Entry, Gallery, render_chunk, render_gallery

REPLICAS = 4
"""Candidates per prompt."""

THEMES = ("ёлка", "площадь 10", "площадь 9")
"""Values of the pass-through column `theme`."""

SCENES = 40
"""Number of different scenes; galleries with more prompts repeat them."""


def write_drawn_gallery(folder: Path, count: int) -> Path:
    """Write a gallery of `count` entries below a folder, and return the path of its page.

    The last candidate of every prompt is rejected because of its score.
    """
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(SCENES)]
    for number, scene in enumerate(scenes):
        for replica in range(REPLICAS):
            _write_image(folder / f"data/{number}-{replica}.png", scene, rng)
    entries = [_entry(scenes[index // REPLICAS % SCENES], index, folder) for index in range(count)]
    chunks = [entries[start : start + CHUNK_SIZE] for start in range(0, count, CHUNK_SIZE)]
    gallery = Gallery(
        title="Suprematism",
        facts=[
            (f"{count // REPLICAS:,}", "prompts"),
            (f"{count:,}", "candidates"),
            (f"{sum(entry.reason is None for entry in entries):,}", "published"),
            ("0.312", "mean score"),
        ],
        models=["demo-dalle", "demo-vqgan", "demo-ruclip"],
        rejected_totals={"below_threshold": count // REPLICAS, "empty_prompt": 1},
        replay="rudalle-flows replay output/demo {id}",
        chunks=[f"data/{number:05d}.js" for number in range(len(chunks))],
        rows=[Entry(None, None, "", reason="empty_prompt", detail="row 3: the prompt is empty")],
    )
    (folder / "gallery/data").mkdir(parents=True)
    for number, chunk in enumerate(chunks):
        path = folder / f"gallery/data/{number:05d}.js"
        path.write_text(render_chunk(chunk), encoding="utf-8")
    page = folder / "gallery/index.html"
    page.write_text(render_gallery(gallery), encoding="utf-8")
    return page


def _write_image(path: Path, scene: Scene, rng: random.Random) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(draw_scene(scene, rng))
    image.resize((256, 256), Image.Resampling.LANCZOS).save(path)


def _entry(scene: Scene, index: int, folder: Path) -> Entry:
    number, replica = divmod(index, REPLICAS)
    rng = random.Random(index)
    score = 0.22 + 0.2 * rng.betavariate(4, 3)
    caption = russian_caption(scene)
    published = Entry(
        image_id=f"prompt{number}-{replica:03d}",
        prompt_id=f"prompt{number}",
        caption=caption,
        score=score,
        seed=2**62 + index,
        model="demo-dalle",
        source=f"../data/{number % SCENES}-{replica}.png",
        details={"image_id": f"prompt{number}-{replica:03d}", "rank": replica + 1, "top_p": 0.995},
        columns={"theme": THEMES[number % len(THEMES)], "row": number},
        similar=[f"prompt{number + step}-{replica:03d}" for step in (2, 1, 3, 40, 80, 5, 6, 7)],
    )
    if replica < REPLICAS - 1:
        return published
    image = folder / f"data/{number % SCENES}-{replica}.png"
    return replace(
        published,
        reason="below_threshold",
        columns={},
        similar=(),
        detail=f"expected a score of at least 0.25, found {score - 0.2:.3f}",
        score=score - 0.2,
        source=as_data_uri(image.read_bytes()) if number < SCENES else published.source,
    )
