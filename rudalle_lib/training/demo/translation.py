"""Train the demo translator: English captions of Suprematist scenes to canonical Russian captions.

The translator is a Marian network of about a million parameters, in the file layout of the OPUS-MT
repositories. The English captions have random variations. Their SentencePiece model folds case. No
caption contains a held-out combination, so the measured quality shows composition, not memory.

    python -m rudalle_lib.training.demo.translation --work runs/marian \\
        --out rudalle_lib/demo/weights/demo-marian

Paper: Junczys-Dowmunt et al., "Marian: Fast Neural Machine Translation in C++", arXiv:1804.00344.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece
import torch
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.demo.captions import (
    background_ru,
    english_caption,
    english_variant,
    russian_caption,
)
from rudalle_lib.demo.scenes import Scene, random_scene
from rudalle_lib.text.translation import Translator
from rudalle_lib.training.figures import printer
from rudalle_lib.training.run import cosine, export
from rudalle_lib.training.task import Batch, Task
from rudalle_lib.training.trainer import train as train_task
from rudalle_lib.weights.marian import load_marian, load_tokenizer

if TYPE_CHECKING:
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

PIECES = 240
"""Pieces per language: enough for each word to be one piece, plus letters for other words."""

VOCABULARY_CAPTIONS = 3000
"""Number of captions on which the vocabularies are trained."""

BATCH = 128
"""Captions per batch."""

RATE, WARMUP, DECAY = 2e-3, 200, 0.998
"""Peak learning rate, number of warm-up steps, and decay of the weight average."""

NO_LABEL = -100
"""Label of padding, which the loss ignores."""

HELD_OUT_SEED = 7
"""Seed of the scenes on which the trained network is measured."""

RUSSIAN_LETTERS = "абвгдежзийклмнопрстуфхцчшщъыьэюяё"
"""Letters that the Russian vocabulary must contain."""


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Args:
        work: folder for vocabulary, log and checkpoint.
        out: weights folder to write.
        steps: number of steps.
        seed: seed of captions, weights and dropout.
        bfloat16: whether to train under bfloat16 autocast.
        examples: captions per measured figure.
    """

    work: Path
    out: Path
    steps: int = 2500
    seed: int = 1
    bfloat16: bool = False
    examples: int = 2000


def caption_pair(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Return an English caption with random variations and the canonical Russian caption."""
    english, russian = english_caption(scene), russian_caption(scene)
    if rng.random() < 0.7:
        english = english_variant(scene, rng)
    if rng.random() < 0.1:
        english = re.sub(r"\b([Aa]n?)\b", "the", english)
    if rng.random() < 0.1:
        english = english.replace(" on ", rng.choice((" against ", ", on ", ", ")))
    elif rng.random() < 0.1:  # no background named at all
        english = english.rpartition(" on ")[0]
        russian = russian.removesuffix(" " + background_ru(scene.background))
    return english, russian


def caption_pairs(seed: object, count: int) -> Iterator[tuple[str, str]]:
    """Yield `count` caption pairs without held-out combinations, determined by the seed."""
    rng = random.Random(f"translation {seed}")
    for _ in range(count):
        yield caption_pair(random_scene(rng), rng)


def train_vocabulary(folder: Path, seed: int) -> None:
    """Train both vocabularies; write `source.spm`, `target.spm` and their joint `vocab.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    english, russian = zip(*caption_pairs(f"vocabulary {seed}", VOCABULARY_CAPTIONS), strict=True)
    letters = string.ascii_lowercase + string.digits + ",.!?-"
    source = _train_pieces(english, letters, "nmt_nfkc_cf")  # cf folds case
    target = _train_pieces(russian, RUSSIAN_LETTERS, "nmt_nfkc")
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    pieces = dict.fromkeys(("</s>", "<unk>", *_pieces(source), *_pieces(target), "<pad>"))
    vocabulary = {piece: id_ for id_, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=1), "utf-8")


def _train_pieces(captions: Sequence[str], letters: str, normalization: str) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=letters,
        normalization_rule_name=normalization,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,  # errors only
    )
    return model.getvalue()


def _pieces(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [
        processor.id_to_piece(id_)
        for id_ in range(processor.get_piece_size())
        if not processor.is_control(id_) and not processor.is_unknown(id_)
    ]


def make_config(tokenizer: MarianTokenizer) -> MarianConfig:
    """Return the architecture: encoder and decoder of two layers with 128 channels."""
    from transformers import MarianConfig

    return MarianConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_position_embeddings=128,
        activation_function="swish",
        scale_embedding=True,
        dropout=0.1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
    )


def encode_batch(tokenizer: MarianTokenizer, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Tokenize and pad caption pairs.

    Args:
        tokenizer: the Marian tokenizer.
        pairs: English and Russian captions.

    Returns:
        int64 `input_ids` and `attention_mask` [B, S], and `labels` [B, T], -100 for padding.
    """
    english, russian = zip(*pairs, strict=True)
    encoded = tokenizer(list(english), text_target=list(russian), padding=True, return_tensors="pt")
    padded = encoded["labels"] == tokenizer.pad_token_id
    return {**encoded, "labels": encoded["labels"].masked_fill(padded, NO_LABEL)}


class Translation(Task):
    """A new network, and the pairs of captions that it learns.

    Args:
        tokenizer: the Marian tokenizer.
        seed: seed of weights and captions.
    """

    model: MarianMTModel
    can_split = False  # the loss is a mean over tokens

    def __init__(self, tokenizer: MarianTokenizer, seed: int) -> None:
        from transformers import MarianMTModel

        torch.manual_seed(seed)
        self.model = MarianMTModel(make_config(tokenizer))
        self._tokenizer, self._seed = tokenizer, seed

    def batch(self, step: int, rows: range) -> Batch:
        """Return new caption pairs, see `encode_batch`."""
        return encode_batch(self._tokenizer, list(caption_pairs(f"{self._seed} {step}", BATCH)))

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        return {"loss": model(**batch).loss}

    def optimizers(self, training: TrainingConfig) -> list[torch.optim.Optimizer]:
        """Return AdamW."""
        rate, decay = training.learning_rate, training.weight_decay
        parameters = self.model.parameters()
        return [torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=decay)]

    def schedule(self, step: int, training: TrainingConfig) -> float:
        """Return a cosine after a warm-up."""
        return cosine(step, training.steps, training.warmup_steps)


def train(options: Options, tokenizer: MarianTokenizer) -> tuple[MarianMTModel, float]:
    """Train or resume; return the averaged network and the minutes of training."""
    task = Translation(tokenizer, options.seed)
    training = TrainingConfig(
        steps=options.steps,
        batch_size=BATCH,
        learning_rate=RATE,
        warmup_steps=min(WARMUP, options.steps // 4),
        average=DECAY,
        dtype="bfloat16" if options.bfloat16 else "float32",
    )
    trained = train_task(
        task, training, work=options.work, seed=options.seed, device="cpu", on_figures=printer()
    )
    return task.model, trained.seconds / 60


def exact_share(translator: Translator, count: int, seed: int, varied: bool) -> float:
    """Return the share of held-out captions that are translated to the canonical Russian caption.

    Args:
        translator: the translator to measure.
        count: number of captions.
        seed: seed of the scenes.
        varied: whether the English captions have random variations.
    """
    rng = random.Random(seed)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    english = [english_variant(s, rng) if varied else english_caption(s) for s in scenes]
    russian = translator.translate(english, language="en", batch_size=64)
    return sum(r == russian_caption(s) for r, s in zip(russian, scenes, strict=True)) / count


def write_model(options: Options, model: MarianMTModel, minutes: float) -> dict[str, float]:
    """Write the weights folder in float16, measure its quality, and write it into the card."""
    tied = ("lm_head.weight", "embed_tokens.weight", "embed_positions.weight")
    tensors = {
        name: tensor.half() for name, tensor in model.state_dict().items()
        if not name.endswith(tied)
    }  # fmt: skip
    config: dict[str, Any] = {**model.config.to_diff_dict(), "architectures": ["MarianMTModel"]}
    export(options.out, tensors, config, [])
    for name in ("source.spm", "target.spm", "vocab.json"):
        (options.out / name).write_bytes((options.work / name).read_bytes())
    generation = {
        "bad_words_ids": [[model.config.pad_token_id]],
        "decoder_start_token_id": model.config.decoder_start_token_id,
        "eos_token_id": model.config.eos_token_id,
        "max_length": model.config.max_position_embeddings,
        "num_beams": 1,
        "pad_token_id": model.config.pad_token_id,
    }
    (options.out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    translator = load_marian(options.out)
    figures = {
        "canonical": exact_share(translator, options.examples, HELD_OUT_SEED, varied=False),
        "varied": exact_share(translator, options.examples, HELD_OUT_SEED, varied=True),
    }
    card = model_card(options, figures, minutes, sum(t.numel() for t in tensors.values()))
    (options.out / "MODEL_CARD.md").write_text("\n".join(card) + "\n")
    return figures


def model_card(
    options: Options, figures: dict[str, float], minutes: float, parameters: int
) -> list[str]:
    """Return the lines of `MODEL_CARD.md`."""
    precision = " --bfloat16" if options.bfloat16 else ""
    return [
        "# demo-marian",
        "",
        "Marian network, English to Russian, only for captions of the Suprematist demo:",
        f"2 + 2 layers, {parameters / 1e6:.2f} million parameters, stored in float16.",
        "",
        "- data: pairs of captions made by `rudalle_lib.demo.captions`, held-out combinations "
        "excluded",
        f"- command: `python -m rudalle_lib.training.demo.translation --steps {options.steps} "
        f"--seed {options.seed}{precision}`",
        f"- minutes on 2 CPU cores: {minutes:.0f}",
        f"- captions of held-out combinations translated exactly ({options.examples} each): "
        f"canonical English {figures['canonical']:.2%}, varied English {figures['varied']:.2%}",
        "- licence: Apache-2.0",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: train the vocabulary and the network, export, measure."""
    parser = argparse.ArgumentParser(description="Train the demo translator.")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    parser.add_argument("--work", type=Path, required=True, help="folder for log and checkpoint")
    parser.add_argument("--steps", type=int, default=Options.steps)
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--bfloat16", action="store_true", help="train under bfloat16 autocast")
    parser.add_argument(
        "--examples", type=int, default=Options.examples, help="captions per measured figure"
    )
    options = Options(**vars(parser.parse_args(arguments)))
    if not (options.work / "vocab.json").exists():
        train_vocabulary(options.work, options.seed)
    model, minutes = train(options, load_tokenizer(options.work))
    figures = write_model(options, model, minutes)
    print(f"written: {options.out}, {figures}")


if __name__ == "__main__":
    main()
