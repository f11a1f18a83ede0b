"""Write the measured figures of the demo stack into the README, between its `quality` marks.

python -m rudalle_lib.training.readme_figures rudalle_lib/demo/quality.json README.md
"""

import json
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- quality:begin -->\n).*?(<!-- quality:end -->)", re.DOTALL)
ROWS = (
    ("the checker itself, on true renders", "checker_true_renders", "{:.1%}"),
    ("VQ-GAN reconstruction", "vqgan_psnr_db", "{:.1f} dB"),
    ("... and the checker's word on it", "vqgan_round_trip_agreement", "{:.1%}"),
    ("prompt and picture agree, one sample", "agreement_one_sample", "**{:.1%}**"),
    ("... best of 8 by ruCLIP score", "agreement_best_of_replicas", "**{:.1%}**"),
    ("... any of 8", "agreement_any_of_replicas", "{:.1%}"),
    ("... one sample, combinations seen in training", "agreement_one_sample_seen", "{:.1%}"),
    ("ruCLIP: the right caption of 64, true pictures", "ruclip_right_of_64", "{:.1%}"),
    ("ruCLIP: a good picture above a bad one of its prompt", "ruclip_auc_within_prompt", "{:.1%}"),
    ("super-resolution against bicubic", "upscaler_gain_over_bicubic_db", "{:+.1f} dB"),
    ("English captions translated exactly", "translation_exact", "{:.1%}"),
    ("... with synonyms, other articles and case", "translation_variants_exact", "{:.1%}"),
)
"""Label, key in the JSON file and format of every row."""


def table(figures: dict[str, float]) -> str:
    """The figures as a Markdown table; a dash where there was nothing to measure."""
    rows = [
        f"| {label} | {form.format(figures[key]) if key in figures else '–'} |"
        for label, key, form in ROWS
    ]
    return "\n".join(["| figure | measured |", "| --- | --- |", *rows, ""])


def fill(readme: str, figures: dict[str, float]) -> str:
    """The README with its block of figures replaced.

    Raises:
        ValueError: the README has no such block.
    """
    if not BLOCK.search(readme):
        raise ValueError("expected <!-- quality:begin --> and <!-- quality:end --> in the README")
    return BLOCK.sub(lambda match: match[1] + table(figures) + match[2], readme)


def main(quality: Path, readme: Path) -> None:
    """Rewrite the README file."""
    figures = json.loads(quality.read_text())
    readme.write_text(fill(readme.read_text(encoding="utf-8"), figures), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
