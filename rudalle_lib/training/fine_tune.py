"""Fine-tune a decoder on your own images, as Emojich and Surrealist were made from Malevich.

The table is a prompt table (Parquet, CSV or JSONL) with a column `image` (or `picture`): the path
or URL of the image that each Russian prompt describes. Images are resized and centre-cropped to the
decoder's canvas. The result replaces the published weights in a folder of weights:

    python -m rudalle_lib.training.fine_tune --table images.csv --model malevich-v3 \\
        --vqgan vqgan-f8 --frozen attention mlp --work runs/mine --out weights
    rudalle-flows run configs/malevich.yaml --set weights.folder=weights

A stopped training resumes from its work folder, which belongs to one table and one model. Training
all of Malevich needs 16 bytes per parameter, 21 GB. Frozen parts need 4 bytes per parameter.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import ImageError, PromptError, StorageError
from rudalle_lib.generation.image_prompts import fit, read_image
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.prompts.rows import EXTRA, read_prompt_blocks
from rudalle_lib.registry import ModelEntry
from rudalle_lib.runtime.devices import resolve_devices
from rudalle_lib.storage.reading import ROWS
from rudalle_lib.text.tokenizer import Tokenizer
from rudalle_lib.training.decoder import PARTS, DecoderTask, TensorExamples, trained_decoder
from rudalle_lib.training.figures import printer
from rudalle_lib.training.trainer import train
from rudalle_lib.weights.loading import load_decoder, load_vqgan

IMAGE_COLUMNS = ("image", "picture")
"""Names of the column with the path or URL of each image, the preferred name first."""

WARMUP = 20
"""Maximum number of warm-up steps."""

Pairs = dict[str, Tensor]
"""Text ids, `text`: int64 [N, T], and image tokens, `image`: int64 [N, H * W]."""


def read_pairs(
    table: str, tokenizer: Tokenizer, vqgan: VqGan, config: DalleConfig
) -> tuple[Pairs, list[str]]:
    """Read a table and encode its texts and images.

    Args:
        table: path or URL of the prompt table.
        tokenizer: the decoder's tokenizer.
        vqgan: the VQ-GAN with which the decoder was trained.
        config: the decoder's architecture.

    Returns:
        The pairs, and a message for each row that was left out.

    Raises:
        PromptError: if the table cannot be read, has no column of images, or has no usable row.
        StorageError: if the table does not exist.
    """
    texts: list[list[int]] = []
    images: list[Tensor] = []
    problems: list[str] = []
    for block in read_prompt_blocks(table):
        problems += [row.detail for row in block.rejects]
        column = image_column(table, block.prompts.column_names)
        for number, row in zip(block.numbers, block.prompts.to_pylist(), strict=True):
            try:
                images.append(encode_prompt_image(vqgan, str(row[column] or ""), config))
            except (StorageError, ImageError) as error:
                problems.append(f"row {number} of {table}: {error}")
                continue
            texts.append(tokenizer.encode_text(row["text"], config.text_length).ids)
    if not texts:
        raise PromptError(
            f"{table} has no row to learn from. "
            + (f"First problem: {problems[0]}" if problems else "It is empty.")
        )
    return {"text": torch.tensor(texts), "image": torch.stack(images)}, problems


def image_column(table: str, names: Sequence[str]) -> str:
    """Return which of the columns of a block of prompts has the images.

    Raises:
        PromptError: if there is none.
    """
    for name in IMAGE_COLUMNS:
        if EXTRA + name in names:
            return EXTRA + name
    raise PromptError(
        f"{table} has no column {' or '.join(IMAGE_COLUMNS)}: add one with the path or URL of each "
        "image"
    )


def encode_prompt_image(vqgan: VqGan, uri: str, config: DalleConfig) -> Tensor:
    """Encode an image of any size as tokens of the decoder's canvas, int64 [H * W] on the CPU."""
    side = vqgan.config.downsampling
    height, width = config.image_height * side, config.image_width * side
    image = fit(read_image(uri, "image", ROWS), height, width)[None].to(
        vqgan.quantize.embed.weight.device
    )
    return vqgan.encode(image / 127.5 - 1).flatten().cpu()


def write_weights(model: Dalle, entry: ModelEntry, folder: Path) -> Path:
    """Write float16 weights to their usual place in a folder of weights; return the path."""
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
    """Run the command line: encode the images (once), train, export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", required=True, help="path or URL of a prompt table")
    parser.add_argument("--model", default="demo-dalle", help="decoder to start from")
    parser.add_argument("--vqgan", default="demo-vqgan", help="VQ-GAN with which it was trained")
    parser.add_argument("--weights", help="folder of downloaded weights")
    parser.add_argument("--work", type=Path, required=True, help="folder for log and checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder of weights to write to")
    parser.add_argument(
        "--frozen", nargs="*", default=[], choices=PARTS, help="parts that do not learn"
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-5, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0 or another device")
    options = parser.parse_args(arguments)
    weights, device = WeightsConfig(folder=options.weights), resolve_devices(options.device)[0]
    loaded = load_decoder(options.model, weights, device, packed=False)
    pairs_file = options.work / "pairs.safetensors"
    if not pairs_file.exists():
        vqgan = load_vqgan(options.vqgan, weights, device).model
        pairs, problems = read_pairs(options.table, loaded.tokenizer, vqgan, loaded.model.config)
        for problem in problems:
            print(f"left out: {problem}")
        print(f"{len(pairs['text']):,} images to learn from")
        options.work.mkdir(parents=True, exist_ok=True)
        save_file(pairs, pairs_file)
    training = TrainingConfig(
        frozen=options.frozen,
        steps=options.steps,
        batch_size=options.batch,
        learning_rate=options.rate,
        warmup_steps=min(WARMUP, options.steps // 4 or 1),
    )
    examples = TensorExamples(load_file(pairs_file))
    task = DecoderTask(loaded.model, examples, training, seed=options.seed)
    trained = train(
        task, training, work=options.work, seed=options.seed, device=device.type,
        on_figures=printer(every=10),
    )  # fmt: skip
    base = load_decoder(options.model, weights, packed=False).model
    model = trained_decoder(base, training, trained.weights)
    print(f"written: {write_weights(model, loaded.entry, options.out)}")


if __name__ == "__main__":
    main()
