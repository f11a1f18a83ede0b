"""Train the whole demo stack from scratch, one model after another, then measure it.

    python -m rudalle_lib.training.demo.all --work runs/train-demo --out rudalle_lib/demo/weights

The command can be stopped and restarted at any time. Each part resumes from its last checkpoint,
and parts that are recorded as complete in the work folder are skipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rudalle_lib.training.demo import (
    decoder,
    quality,
    ruclip,
    super_resolution,
    translation,
    vqgan,
    vqgan_codes,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/train-demo"),
        help="folder for logs, checkpoints and the record of completed parts",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("rudalle_lib/demo/weights"),
        help="folder for the weights folders",
    )
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)

    def folder(name: str) -> list[str]:
        return ["--work", str(options.work / name), "--out", str(options.out / name)]

    vq, dalle = str(options.out / "demo-vqgan"), str(options.out / "demo-dalle")
    parts: dict[str, Callable[[], None]] = {
        "demo-vqgan": lambda: vqgan.main(folder("demo-vqgan")),
        "demo-vqgan-codes": lambda: vqgan_codes.main(
            ["--work", str(options.work / "demo-vqgan-codes"), "--vqgan", vq]
        ),
        "demo-dalle": lambda: decoder.main([*folder("demo-dalle"), "--compile"]),
        "demo-realesrgan-x2": lambda: super_resolution.main(
            [*folder("demo-realesrgan-x2"), "--vqgan", vq]
        ),
        "demo-ruclip": lambda: ruclip.main(
            [*folder("demo-ruclip"), "--vqgan", vq, "--decoder", dalle, "--compile"]
        ),
        "demo-marian": lambda: translation.main(folder("demo-marian")),
        "quality": lambda: quality.main(["--out", str(options.out.parent / "quality.json")]),
    }
    for name, train in parts.items():
        done = options.work / f"{name}.done"
        if not done.exists():
            train()
            done.touch()


if __name__ == "__main__":
    main()
