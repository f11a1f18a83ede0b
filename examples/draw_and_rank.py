"""Draw a text, rank the candidates by how well they show it, and save the best, enlarged.

    python examples/draw_and_rank.py "красный круг на белом фоне"

The demo models are in the package. With others, such as malevich-v3, vqgan-f8,
ruclip-vit-base-patch32-384 and realesrgan-x2, weights are downloaded on first use.
"""

from __future__ import annotations

import sys

from rudalle_lib import (
    draw_images,
    load_decoder,
    load_scorer,
    load_upscaler,
    load_vqgan,
    rank_images,
    to_pil,
    upscale_images,
)

text = sys.argv[1] if len(sys.argv) > 1 else "красный круг на белом фоне"

decoder = load_decoder("demo-dalle")  # text to image tokens
vqgan = load_vqgan("demo-vqgan")  # image tokens to pixels
scorer = load_scorer("demo-ruclip")  # how well an image shows a text
upscaler = load_upscaler("demo-realesrgan-x2")  # twice the side

# Eight candidates, uint8 [8, 3, H, W]. The same seed draws the same images.
images = draw_images(decoder, vqgan, text, images=8, seed=1)

# `order` has the best image first, `scores` are its cosines in the same order.
order, scores = rank_images(scorer, images, text)
for place, (number, score) in enumerate(zip(order, scores, strict=True), start=1):
    print(f"{place}. candidate {number}: {score:.3f}")

for place, image in enumerate(upscale_images(upscaler, images[order[:2]]), start=1):
    to_pil(image).save(f"best-{place}.png")
