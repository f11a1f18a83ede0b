"""A tiny Marian network, trained in seconds, for tests of translation and of loading."""

from __future__ import annotations

from pathlib import Path

import torch

from rudalle_lib.training.demo.translation import caption_pairs, encode_batch, train_vocabulary
from rudalle_lib.training.run import export
from rudalle_lib.weights.marian import load_tokenizer

PAIRS = sorted(set(caption_pairs("test", 8)))
"""English captions and their Russian translations."""


def write_tiny_marian(folder: Path) -> Path:
    """Train a network on `PAIRS` until it translates them exactly; returns its weights folder."""
    from transformers import MarianConfig, MarianMTModel

    train_vocabulary(folder, seed=0)
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=tokenizer.vocab_size, d_model=48, max_position_embeddings=64,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=96, decoder_ffn_dim=96, scale_embedding=True, dropout=0.0, init_std=0.1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id, forced_eos_token_id=0, num_beams=4,
    )  # fmt: skip
    model = MarianMTModel(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = encode_batch(tokenizer, PAIRS)
    for _ in range(120):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    names = ("model.shared.weight", "layers.", "layernorm", "final_logits_bias")
    tensors = {k: v for k, v in model.state_dict().items() if any(name in k for name in names)}
    export(folder, tensors, config.to_diff_dict(), [])
    return folder
