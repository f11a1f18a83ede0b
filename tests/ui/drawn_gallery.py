"""A gallery of drawn Suprematist scenes, as large as one likes, without any network."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from PIL import Image

from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.drawing import draw_scene
from rudalle_lib.demo.scenes import Scene, random_scene
from rudalle_lib.gallery import Entry, Gallery, render_chunk, render_gallery
from rudalle_lib.gallery_files import CHUNK, make_thumbnail

REPLICAS = 4
SCENES = 40
"""Different scenes; galleries with more prompts show them again and again."""


def write_drawn_gallery(folder: Path, count: int) -> Path:
    """Write a gallery of `count` entries below a folder; the path of its page.

    The last of every four candidates is rejected, for its score.
    """
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(SCENES)]
    for number, scene in enumerate(scenes):
        for replica in range(REPLICAS):
            _write_picture(folder / f"data/{number}-{replica}.png", scene, rng)
    entries = [_entry(scenes[index // REPLICAS % SCENES], index, folder) for index in range(count)]
    chunks = [entries[start : start + CHUNK] for start in range(0, count, CHUNK)]
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


def _write_picture(path: Path, scene: Scene, rng: random.Random) -> None:
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
        score=round(score, 6),
        seed=2**62 + index,
        model="demo-dalle",
        source=f"../data/{number % SCENES}-{replica}.png",
        details={"image_id": f"prompt{number}-{replica:03d}", "rank": replica + 1, "top_p": 0.995},
    )
    if replica < REPLICAS - 1:
        return published
    picture = folder / f"data/{number % SCENES}-{replica}.png"
    return replace(
        published,
        reason="below_threshold",
        detail=f"expected a score of at least 0.25, found {score - 0.2:.3f}",
        score=round(score - 0.2, 6),
        source=make_thumbnail(picture.read_bytes()) if number < SCENES else published.source,
    )
