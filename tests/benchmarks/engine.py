"""Compare the engine with its peers and its floor: the tables of docs/performance.md, in one run.

    make bench          about half an hour on two cores: all sizes, all positions
    make bench-quick    under 3 minutes: 8 of 24 layers, the middle of an image

Each figure is measured in its own process, one after another, with the same number of threads. The
peers run in the environment `.peers` (`make peers`). This prints a table, and writes the figures
with the command, the machine and the date to `tests/benchmarks/results/`, one file per processor.
`--only` measures some of it again. `--docs` puts the table into docs/performance.md. A growth plot
is drawn if matplotlib is installed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.documentation import PERFORMANCE, write_block
from tests.benchmarks.timing import POSITIONS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
PEERS = ROOT / ".peers" / "bin" / "python"

PARTS = ("decoder", "images", "precision", "memory", "growth")
"""Parts of the measurement, in the order of the tables."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        what: what is measured.
        against: what it is compared with.
        bar: the required value, or "-" if there is none.
        found: the measured value.
        passes: whether it reaches the bar.
    """

    what: str
    against: str
    bar: str
    found: str
    passes: bool


class Bench:
    """Runs measurements, each in its own process, and stores their figures.

    Args:
        threads: CPU threads per process.
        layers: layers of the decoders.
        repeats: repetitions per figure.
        positions: positions in an image at which steps are measured.
    """

    def __init__(self, threads: int, layers: int, repeats: int, positions: Sequence[int]) -> None:
        self.threads = threads
        self.common: dict[str, Any] = {
            "layers": layers,
            "repeats": repeats,
            "positions": list(positions),
        }
        self.figures: dict[str, Figures] = {}

    def ours(self, name: str, what: str, **options: Any) -> Figures:
        """Measure this project."""
        return self._measure(name, [sys.executable, "-m", "tests.benchmarks.measure_engine", what],
                             options)  # fmt: skip

    def peer(self, name: str, what: str, **options: Any) -> Figures:
        """Measure a peer."""
        return self._measure(name, [str(PEERS), "-m", "tests.benchmarks.measure_peers", what],
                             options)  # fmt: skip

    def _measure(self, name: str, command: list[str], options: Mapping[str, Any]) -> Figures:
        print(f"  {name} ...", file=sys.stderr, flush=True)
        for key, value in {**self.common, **options}.items():
            text = value if isinstance(value, str) else json.dumps(value)
            command += [f"--{key}", text]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
        if done.returncode or not lines:
            raise SystemExit(
                f"{name} failed ({done.returncode}): {' '.join(command)}\n{done.stderr}"
            )
        self.figures[name] = json.loads(lines[-1].removeprefix("FIGURES "))
        return self.figures[name]


def decoder_rows(bench: Bench, quick: bool) -> list[Row]:
    """Compare tokens per second with three peers, and with the matrix products alone.

    Ours are measured before and after the peers and averaged, because the speed of machines varies.
    """
    dtypes, batches = ("bfloat16", "int8_dynamic"), (128, 64)

    def measure(when: str) -> dict[tuple[str, int], Figures]:
        return {
            (dtype, batch): bench.ours(f"decoder, {dtype}, batch {batch}, {when}", "decoder",
                                       dtype=dtype, batch=batch)
            for dtype in dtypes for batch in batches
        }  # fmt: skip

    rounds = [measure("before the peers")]
    slow = 2 if quick else 3
    shipped = bench.peer("rudalle, float32, batch 8", "rudalle", repeats=slow)
    cast = bench.peer("rudalle, bfloat16, batch 8", "rudalle", dtype="bfloat16", repeats=slow)
    caches = "dynamic" if quick else "dynamic,static"
    gpt2 = bench.peer("GPT-2, bfloat16, batch 64", "gpt2", batch=64, caches=caches, repeats=slow)
    if not quick:
        rounds.append(measure("after the peers"))

    def ours(dtype: str, batch: int, figure: str) -> float:
        return statistics.mean(found[dtype, batch][figure] for found in rounds)

    rows, rate = [], "tokens_per_second"
    for dtype in dtypes:
        what, speed = f"image tokens/s over a whole image, {dtype}", ours(dtype, 128, rate)
        rows += [
            ratio(what, "rudalle 1.1.3, float32, batch 8", 120, speed, shipped[rate]),
            ratio("... the same", "the same in bfloat16", 55, speed, cast[rate]),
            ratio("... the same, batch 64", f"transformers GPT-2, bfloat16, {gpt2['best']} cache",
                  8, ours(dtype, 64, rate), gpt2[rate]),
        ]  # fmt: skip
    cache = ours("bfloat16", 64, "cache_bytes") / bench.common["layers"] * 24 / 1e6
    return [
        *rows,
        *(share(f"share of the floor, bfloat16, batch {batch}", ours("bfloat16", batch, "share"))
          for batch in reversed(batches)),
        Row("cache per image, bfloat16, 8 replicas", "226 MB dense", "62 MB", f"{cache:.1f} MB",
            cache <= 62),
    ]  # fmt: skip


def image_rows(bench: Bench, quick: bool) -> list[Row]:
    """Compare VQ-GAN, super-resolution and ruCLIP with the originals."""
    few, more = (1, 2) if quick else (4, 8)
    images, once = (16, 1) if quick else (64, 3)
    vqgan = bench.ours("vqgan-f8, bfloat16", "vqgan", batch=more, repeats=once)
    vae = bench.peer("rudalle vae.decode", "vqgan", batch=more, repeats=once)
    large = bench.ours("super-resolution, bfloat16", "super_resolution", batch=few, repeats=once)
    slow = bench.peer("rudalle super_resolution", "super_resolution", batch=few, repeats=once)
    scores = bench.ours("ruclip, bfloat16", "ruclip", batch=images, repeats=once)
    exact = bench.ours("ruclip, float32", "ruclip", batch=images, repeats=once, dtype="float32")
    predictor = bench.peer("ruclip Predictor", "ruclip", batch=images, repeats=once)
    rate = "images_per_second"
    psnr = vqgan["psnr"]
    return [
        ratio("VQ-GAN decode, images/s", "rudalle vae.decode", 3, vqgan[rate], vae[rate]),
        Row("... PSNR of bfloat16 to float32", "itself", "45 dB", f"{psnr:.1f} dB", psnr >= 45),
        Row("VQ-GAN's convolutions alone", "-", "-", f"{vqgan['share']:.0%} of its time, "
            f"{vqgan[rate] / vqgan['share'] / vae[rate]:.2f}x of rudalle's vae.decode", True),
        ratio("super-resolution x2 of 256 px, images/s", "rudalle super_resolution", 8,
              large[rate], slow[rate]),
        ratio("ruCLIP scores, images/s", "ruclip Predictor", 2, scores[rate], predictor[rate]),
        Row("ruCLIP scores in float32", "-", "-", f"{exact[rate] / predictor[rate]:.1f}x of the "
            f"Predictor's; bfloat16 moves a score by {scores['moved']:.4f} at most", True),
    ]  # fmt: skip


def precision_rows(bench: Bench) -> list[Row]:
    """Measure how precision changes speed, memory and tokens. These rows have no bar."""
    rows = []
    agreement = bench.ours("agreement of tokens", "agreement", batch=32)
    for dtype in ("float32", "bfloat16", "int8", "int8_dynamic"):
        found = bench.ours(f"decoder, {dtype}, one position", "decoder", dtype=dtype, batch=64,
                           positions=[512])  # fmt: skip
        speed = f"{found['tokens_per_second']:.0f} tokens/s, {found['peak_gigabytes']:.1f} GB"
        same = "" if dtype == "float32" else f", {agreement[dtype]:.2%} of tokens as in float32"
        rows.append(Row(f"decoder in {dtype}, batch 64", "-", "-", speed + same, True))
    return rows


def memory_rows(bench: Bench) -> list[Row]:
    """Measure the peak memory of a process that loads a published checkpoint and draws."""
    with tempfile.TemporaryDirectory() as folder:
        bench.ours("a checkpoint of Malevich", "write_checkpoint", folder=folder)
        bench.ours("loading it the first time", "memory", folder=folder, batch=8)
        peak = bench.ours("loading it again", "memory", folder=folder, batch=8)["peak_gigabytes"]
    return [Row("peak memory, Malevich in bfloat16, batch 8", "weights 2.6 GB", "4 GB",
                f"{peak:.2f} GB", peak <= 4)]  # fmt: skip


def growth_rows(bench: Bench) -> list[Row]:
    """Measure the time per image for increasing batches and numbers of replicas."""
    batches = [[batch, min(batch, 8)] for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    replicas = [[64, count] for count in (1, 2, 4, 8, 16, 32)]
    found = bench.ours("growth", "growth", sizes=batches + replicas)["rows"]
    rows = []
    for row in found:
        plural = "" if row["replicas"] == 1 else "s"
        what = f"batch {row['batch']}, {row['replicas']} replica{plural} per prompt"
        if row["seconds"] is None:
            rows.append(Row(what, "-", "-", "does not fit into memory here", True))
            continue
        image = row["seconds"] * 1024 / row["batch"]
        figures = f"{image:.1f} s per image, {row['cache'] / 1e6:.0f} MB cache per image"
        rows.append(Row(what, "-", "-", figures, True))
    return rows


def ratio(what: str, against: str, bar: float, ours: float, theirs: float) -> Row:
    """Return a row with our speed as a multiple of theirs, and both speeds."""
    found = f"{ours / theirs:.1f}x ({ours:.3g} : {theirs:.3g})"
    return Row(what, against, f"{bar}x", found, ours / theirs >= bar)


def share(what: str, found: float) -> Row:
    """Return a row with the floor as a share of the step."""
    return Row(what, "the step's matrix products alone", "70%", f"{found:.0%}", found >= 0.7)


def matrix_unit() -> str:
    """Return the CPU flag of the fastest instructions for bfloat16 matrix products."""
    flags = Path("/proc/cpuinfo").read_text("utf-8")
    return next((flag for flag in ("amx_bf16", "avx512_bf16", "avx2") if flag in flags), "any")


def machine(threads: int) -> str:
    """Describe processor, threads and memory."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    name = names[0] if names else platform.processor()
    return f"{name} ({matrix_unit()}), {threads} threads, {memory:.0f} GB"


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| what | against | at least | measured | |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        mark = "" if row.bar == "-" else ("yes" if row.passes else "**no**")
        lines.append(f"| {row.what} | {row.against} | {row.bar} | {row.found} | {mark} |")
    return "\n".join(lines)


def figures_table(rows: Sequence[Row]) -> str:
    """Return rows without a bar as a Markdown table, or an empty string if there are none."""
    lines = [
        "| also measured | |",
        "| --- | --- |",
        *(f"| {row.what} | {row.found} |" for row in rows),
    ]
    return "\n".join(lines) if rows else ""


def documented_tables(head: str, rows: Sequence[Row]) -> str:
    """Return the conditions of a measurement and its tables as Markdown."""
    with_bar = table([row for row in rows if row.bar != "-"])
    others = figures_table([row for row in rows if row.bar == "-"])
    return "\n\n".join(filter(None, (f"{head}:", with_bar, others)))


def main() -> None:
    """Run the command line: measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="measure 8 of 24 layers at one position"
    )
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads per process"
    )
    parser.add_argument("--only", nargs="*", choices=PARTS, help="measure only these parts")
    parser.add_argument("--note", default="", help="conditions to record with the figures")
    parser.add_argument("--docs", action="store_true", help="update docs/performance.md")
    options = parser.parse_args()
    if not PEERS.exists():
        raise SystemExit("The environment of the peers is missing: run `make peers` first.")
    if options.quick:
        bench = Bench(options.threads, layers=8, repeats=2, positions=[512])
    else:
        bench = Bench(options.threads, layers=24, repeats=5, positions=POSITIONS)
    parts = {
        "decoder": lambda: decoder_rows(bench, options.quick),
        "images": lambda: image_rows(bench, options.quick),
        "precision": lambda: precision_rows(bench),
        "memory": lambda: memory_rows(bench),
        "growth": lambda: growth_rows(bench),
    }
    chosen = options.only or (["decoder", "images"] if options.quick else list(parts))
    path = RESULTS / f"{'quick' if options.quick else 'full'}-{matrix_unit()}.json"
    before = json.loads(path.read_text("utf-8")) if options.only and path.exists() else {}
    rows = {name: [Row(**row) for row in lines] for name, lines in before.get("rows", {}).items()}
    rows |= {part: parts[part]() for part in chosen}
    all_rows = [row for part in PARTS for row in rows.get(part, [])]
    command = f"make bench{'-quick' if options.quick else ''}"
    now = datetime.datetime.now(datetime.UTC)
    head = ", ".join(filter(None, (f"`{command}`", machine(options.threads), f"{now:%Y-%m-%d}",
                                   options.note)))  # fmt: skip
    text = documented_tables(head, all_rows)
    print(text)
    figures = before.get("figures", {}) | bench.figures
    lines = {part: [vars(row) for row in found] for part, found in rows.items()}
    content = {"measured": head, "rows": lines, "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if "growth" in chosen:
        draw_growth(bench.figures["growth"]["rows"])
    if options.docs:
        write_block(PERFORMANCE, f"bench {matrix_unit()}", text)


def draw_growth(rows: Sequence[Figures]) -> None:
    """Plot the growth table, if matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no growth plot (pip install .[bench])", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    known = [row for row in rows if row["seconds"] is not None]
    image = {row["batch"]: row["seconds"] * 1024 / row["batch"] for row in known
             if row["replicas"] == min(row["batch"], 8)}  # fmt: skip
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.loglog(list(image), list(image.values()), "o-", color="#151515")
    axes.set(xlabel="images per batch", ylabel="seconds per image",
             title="Malevich in bfloat16 on two cores")  # fmt: skip
    seconds = [2, 5, 10, 20, 50, 100]
    axes.set_xticks(list(image), [str(batch) for batch in image])
    axes.set_yticks(seconds, [str(value) for value in seconds])
    axes.minorticks_off()
    axes.grid(True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
