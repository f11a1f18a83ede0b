"""Fine-tune a decoder on pictures of your own, as Emojich and Surrealist were made of Malevich.

The table is a prompt table (Parquet, CSV or JSONL) with a column `picture`, the path or URL of what
each Russian prompt tells of. Pictures are cut around their middle to the decoder's canvas. What is
written replaces the published weights in a folder of weights:

    python -m rudalle_lib.training.fine_tune --table pictures.csv --model malevich-v3 \\
        --vqgan vqgan-f8 --frozen attention mlp --work runs/mine --out weights
    rudalle-flows run configs/malevich.yaml --set weights.folder=weights

A working folder goes on where it was stopped; it belongs to one table and one model. Training all
of Malevich takes 16 bytes a parameter, 21 GB; frozen parts take 4.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from rudalle_lib.config import WeightsConfig
from rudalle_lib.devices import resolve_devices
from rudalle_lib.errors import ImageError, PromptError, StorageError
from rudalle_lib.image_prompts import fit, read_picture
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.prompts import EXTRA, read_prompt_blocks
from rudalle_lib.registry import ModelEntry
from rudalle_lib.tokenizer import Tokenizer
from rudalle_lib.training.run import TrainingRun, cosine, descend, set_learning_rate
from rudalle_lib.weights import load_decoder, load_vqgan

PARTS = {"attention": ".attention.", "mlp": ".mlp.", "embeddings": "_embeddings."}
"""What can be frozen, and what the names of its parameters hold."""

PICTURE = "picture"
"""The column that names the picture of a row."""

WARMUP = 20
Pairs = dict[str, Tensor]
"""`text`: ids int64 [N, T]; `image`: tokens int64 [N, H * W]."""


def read_pairs(
    table: str, tokenizer: Tokenizer, vqgan: VqGan, config: DalleConfig
) -> tuple[Pairs, list[str]]:
    """Texts and pictures as tokens, and a sentence for every row that has no such pair.

    Raises:
        PromptError: the table cannot be read, has no such column, or no row that can be used.
        StorageError: the table is not there.
    """
    texts: list[list[int]] = []
    images: list[Tensor] = []
    problems: list[str] = []
    for block in read_prompt_blocks(table):
        problems += [f"left out: {row.detail}" for row in block.rejects]
        if EXTRA + PICTURE not in block.prompts.column_names:
            raise PromptError(f"{table} has no column {PICTURE}; expected paths or URLs in it")
        for number, row in zip(block.numbers, block.prompts.to_pylist(), strict=True):
            try:
                images.append(encode_picture(vqgan, str(row[EXTRA + PICTURE] or ""), config))
            except (StorageError, ImageError) as error:
                problems.append(f"left out: row {number} of {table}: {error}")
                continue
            texts.append(tokenizer.encode_text(row["text"], config.text_length).ids)
    if not texts:
        raise PromptError(
            f"{table} has no row to learn from; {problems[0] if problems else 'it is empty'}"
        )
    return {"text": torch.tensor(texts), "image": torch.stack(images)}, problems


def encode_picture(vqgan: VqGan, uri: str, config: DalleConfig) -> Tensor:
    """A picture of any size as the tokens of the decoder's canvas, int64 [H * W] on the CPU."""
    side = vqgan.config.downsampling
    height, width = config.image_height * side, config.image_width * side
    picture = fit(read_picture(uri, PICTURE), height, width)[None].to(
        vqgan.quantize.embed.weight.device
    )
    return vqgan.encode(picture / 127.5 - 1).flatten().cpu()


def batches(pairs: Pairs, size: int, seed: int, first: int, last: int) -> Iterator[Pairs]:
    """The batches of steps `first` to `last`: random rows, the same for the same step."""
    count = len(pairs["text"])
    for step in range(first, last):
        rows = random.Random(f"{seed}/{step}").sample(range(count), min(size, count))
        yield {name: values[rows] for name, values in pairs.items()}


def train(
    model: Dalle, pairs: Pairs, work: Path, frozen: Sequence[str], steps: int, batch: int,
    rate: float, seed: int,
) -> TrainingRun:  # fmt: skip
    """Train a decoder in place, or resume; loss and schedule are those of its first training."""
    learnt = thaw(model, frozen)
    device = learnt[0].device
    optimizer = torch.optim.AdamW(learnt, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    run = TrainingRun(work, model=model, optimizer=optimizer)
    first = run.resume()
    for step, rows in enumerate(batches(pairs, batch, seed, first, steps), first):
        set_learning_rate(optimizer, rate * cosine(step, steps, min(WARMUP, steps // 4 or 1)))
        with torch.autocast(device.type, torch.bfloat16):
            loss = model.loss(rows["text"].to(device), rows["image"].to(device))
        descend(loss.total, learnt, optimizer)
        if step % 10 == 0:
            run.log(step=step, text=loss.text.item(), image=loss.image.item())
        run.save(step + 1, last=step + 1 == steps)
    return run


def thaw(model: Dalle, frozen: Sequence[str]) -> list[nn.Parameter]:
    """Let all of a network learn but some of its `PARTS`; what learns."""
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(PARTS[part] in name for part in frozen))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def write_weights(model: Dalle, entry: ModelEntry, folder: Path) -> Path:
    """Write float16 weights where a folder of weights has this model's; gives the file."""
    repository = entry.repository_of("weights") or entry.name
    path = folder / repository.rpartition("/")[2] / entry.files["weights"]
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().cpu() for name, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        path.write_bytes(save(state))
    else:
        torch.save(state, path)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: pictures to tokens (once), training, export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", required=True, help="path or URL of a prompt table")
    parser.add_argument("--model", default="demo-dalle", help="decoder to start from")
    parser.add_argument("--vqgan", default="demo-vqgan", help="the one it was trained with")
    parser.add_argument("--weights", help="folder with downloaded weights")
    parser.add_argument("--work", type=Path, required=True, help="for log and checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder of weights to write into")
    parser.add_argument(
        "--frozen", nargs="*", default=[], choices=PARTS, help="what learns nothing"
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0 ...")
    options = parser.parse_args(arguments)
    weights, device = WeightsConfig(folder=options.weights), resolve_devices(options.device)[0]
    loaded = load_decoder(options.model, weights, device, packed=False)
    pairs_file = options.work / "pairs.safetensors"
    if not pairs_file.exists():
        vqgan = load_vqgan(options.vqgan, weights, device).model
        pairs, problems = read_pairs(options.table, loaded.tokenizer, vqgan, loaded.model.config)
        print(*problems, f"{len(pairs['text']):,} pictures to learn from", sep="\n")
        options.work.mkdir(parents=True, exist_ok=True)
        save_file(pairs, pairs_file)
    settings = (options.frozen, options.steps, options.batch, options.rate, options.seed)
    run = train(loaded.model, load_file(pairs_file), options.work, *settings)
    run.log(exported=str(write_weights(loaded.model, loaded.entry, options.out)))


if __name__ == "__main__":
    main()
