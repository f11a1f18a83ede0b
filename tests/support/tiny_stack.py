"""Tiny versions of all models, with random weights, in the folder layout of the demo models.

The images are noise, but all files, networks and stages are real, and a run takes seconds. They are
used through `weights.folder`. A random translator never ends its output, so English prompts are
rejected.
"""

from __future__ import annotations

import dataclasses
import io
import json
import string
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn

from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig

CYRILLIC = "абвгдежзийклмнопрстуфхцчшщъыьэюяё"
LETTERS = "\u2581" + CYRILLIC + string.ascii_lowercase + string.digits + ".,!?-<>/()"
PIECES = 4 + len(LETTERS)
CODES, GRID, TEXT_LENGTH = 32, 4, 40
SIDE = 8 * GRID
"""Side of a decoded image in pixels; upscaled images are twice as large."""


def write_tiny_stack(folder: Path, seed: int = 0) -> Path:
    """Write all five models below `folder`; the same seed gives the same weights."""
    torch.manual_seed(seed)
    dalle = DalleConfig(2, 32, 2, PIECES + TEXT_LENGTH, TEXT_LENGTH, CODES, GRID, GRID)
    ruclip = RuClipConfig(
        embed_dim=16, image_resolution=32, vision_layers=1, vision_width=16, vision_patch_size=16,
        vision_heads=2, context_length=40, vocab_size=PIECES, transformer_width=16,
        transformer_heads=2, transformer_layers=1,
    )  # fmt: skip
    rrdbnet = RrdbNetConfig(scale=2, num_features=8, num_blocks=1, growth=4)
    _write(folder / "demo-dalle", Dalle(dalle), dalle)
    write_tiny_vqgan(folder)
    _write(folder / "demo-ruclip", RuClip(ruclip), ruclip)
    _write(folder / "demo-realesrgan-x2", RrdbNet(rrdbnet), rrdbnet)
    for name in ("demo-dalle", "demo-ruclip"):
        (folder / name / "bpe.model").write_text(letters_as_bpe(), encoding="utf-8")
    _write_marian(folder / "demo-marian")
    return folder


def write_tiny_vqgan(
    folder: Path, codes: int = CODES, damaged: bool = False, dwt: bool = False
) -> Path:
    """Write the VQ-GAN below `folder`; the pixels of a damaged one are NaN."""
    config = VqGanConfig(
        resolution=SIDE, ch=8, ch_mult=(1, 1, 1, 2), num_res_blocks=1, attention_resolutions=(4,),
        z_channels=8, embed_dim=8, n_embed=codes, norm_groups=4, dwt=dwt,
    )  # fmt: skip
    network = VqGan(config)
    if damaged:
        torch.nn.init.constant_(network.post_quant_conv.weight, float("nan"))
    _write(folder / "demo-vqgan", network, config)
    return folder


def letters_as_bpe() -> str:
    """A YouTokenToMe model without merges: each letter is a token."""
    lines = [f"{ord(letter)} {id_}" for id_, letter in enumerate(LETTERS, start=4)]
    return "\n".join([f"{len(LETTERS)} 0", *lines, "1 0 2 3", ""])


def _write(folder: Path, network: nn.Module, config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))


def _write_marian(folder: Path) -> None:
    from transformers import MarianConfig, MarianMTModel

    folder.mkdir(parents=True, exist_ok=True)
    spm = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(LETTERS[1:])] * 4), model_writer=spm, model_type="char",
        vocab_size=300, hard_vocab_limit=False, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(spm.getvalue())
    pieces = ["</s>", "<unk>", *LETTERS, "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    config = MarianConfig(
        vocab_size=len(pieces), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_position_embeddings=64, pad_token_id=len(pieces) - 1,
        eos_token_id=0, decoder_start_token_id=len(pieces) - 1, forced_eos_token_id=None,
    )  # fmt: skip
    model = MarianMTModel(config)
    shared = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    state = {n: t.contiguous() for n, t in model.state_dict().items() if n not in shared}
    state = {n: t.clone() for n, t in state.items() if n != "lm_head.weight"}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "generation_config.json").write_text("{}")
