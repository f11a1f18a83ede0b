"""Write the measured quality of the demo stack into a Markdown document, between its marks.

python -m rudalle_lib.training.demo.readme_figures rudalle_lib/demo/quality.json docs/performance.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- quality:begin -->\n).*?(<!-- quality:end -->)", re.DOTALL)
"""The block to replace, with its marks."""

ROWS = (
    ("checker on true images", "checker_true_renders", "{:.1%}"),
    ("VQ-GAN reconstruction", "vqgan_psnr_db", "{:.1f} dB"),
    ("... share that the checker accepts", "vqgan_round_trip_agreement", "{:.1%}"),
    ("prompt and image agree, one sample", "agreement_one_sample", "**{:.1%}**"),
    ("... best of 8 by ruCLIP score", "agreement_best_of_replicas", "**{:.1%}**"),
    ("... any of 8", "agreement_any_of_replicas", "{:.1%}"),
    ("... one sample, combinations seen in training", "agreement_one_sample_seen", "{:.1%}"),
    ("ruCLIP: right caption of 64 for true images", "ruclip_right_of_64", "{:.1%}"),
    (
        "ruCLIP: good image scored above bad image of the same prompt",
        "ruclip_auc_within_prompt",
        "{:.1%}",
    ),
    ("super-resolution compared with bicubic", "upscaler_gain_over_bicubic_db", "{:+.1f} dB"),
    ("English captions translated exactly", "translation_exact", "{:.1%}"),
    ("... with synonyms, other articles and other case", "translation_variants_exact", "{:.1%}"),
)
"""Label, key in the JSON file and format of each row."""


def table(figures: dict[str, float]) -> str:
    """Return the figures as a Markdown table, with a dash for missing figures."""
    rows = [
        f"| {label} | {format_.format(figures[key]) if key in figures else '–'} |"
        for label, key, format_ in ROWS
    ]
    return "\n".join(["| figure | measured |", "| --- | --- |", *rows, ""])


def fill(document: str, figures: dict[str, float]) -> str:
    """Return the document with its block of figures replaced.

    Raises:
        ValueError: if the document has no such block.
    """
    if not BLOCK.search(document):
        raise ValueError(
            "the document has no block of figures: "
            "expected the marks <!-- quality:begin --> and <!-- quality:end -->"
        )
    return BLOCK.sub(lambda match: match[1] + table(figures) + match[2], document)


def main(quality: Path, document: Path) -> None:
    """Rewrite the block of figures in a document file."""
    figures = json.loads(quality.read_text())
    document.write_text(fill(document.read_text(encoding="utf-8"), figures), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
