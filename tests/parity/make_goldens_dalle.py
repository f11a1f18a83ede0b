"""Make tests/data/parity/dalle_{v2,v3}.bin, *_outputs.pt, *_forced.pt with rudalle 1.1.3.

Run this in a separate environment for the reference, from the root of the repository:

    pip install --no-deps rudalle==1.1.3
    pip install torch transformers einops more_itertools matplotlib tqdm huggingface_hub Pillow
    python -m tests.parity.make_goldens_dalle

The checkpoints are random and small, in the layout of the published files (a pickled state dict
with mask buffers). The outputs of the original are logits, the training loss, and images with their
ppl from its sampling loop with our noise, with and without an image prompt.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.parity import peer_stand_ins

peer_stand_ins.install()

from rudalle import pipelines  # noqa: E402
from rudalle.dalle.model import DalleModel  # noqa: E402

from rudalle_lib.generation.noise import gumbel_noise  # noqa: E402

FOLDER = Path(__file__).parents[1] / "data" / "parity"
ARCHITECTURE = dict(
    num_layers=5,
    hidden_size=24,
    num_heads=3,
    text_vocab_size=38,
    text_length=8,
    image_vocab_size=20,
    image_height=12,
    image_width=12,
)
"""Sizes of the networks."""

SAMPLING = dict(temperature=1.1, top_k=12, top_p=0.9)
TEXTS = [[2, 9, 27, 14, 5, 3, 0, 0], [2, 28, 6, 0, 11, 29, 8, 12]]


def build(version: str) -> Any:
    """Build a small reference network with random weights, norms and biases."""
    torch.manual_seed({"v2": 2, "v3": 3}[version])
    size = SimpleNamespace(**ARCHITECTURE)
    model = DalleModel(
        "cpu",
        num_layers=size.num_layers,
        vocab_size=size.text_vocab_size,
        hidden_size=size.hidden_size,
        num_attention_heads=size.num_heads,
        embedding_dropout_prob=0.1,
        attention_dropout_prob=0.1,
        output_dropout_prob=0.1,
        text_seq_length=size.text_length,
        image_tokens_per_dim=size.image_width,
        image_vocab_size=size.image_vocab_size,
        cogview_sandwich_layernorm=True,
        cogview_pb_relax=True,
        hf_version=version,
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def draw(
    model: Any, text: Tensor, seed: int, forced: dict[int, int] | None = None
) -> tuple[Tensor, float]:
    """Run the original's sampling loop.

    Its filter is the only place where noise can be passed in: the filter drops all but the winner.

    Args:
        model: the reference network.
        text: ids of the prompt, int64 [T].
        seed: seed of the noise.
        forced: tokens of an image prompt by position, which are not filtered.

    Returns:
        Image tokens, int64 [H * W], and their ppl.
    """
    prompt, image_prompts = torch.zeros(1, model.image_seq_length, dtype=torch.int64), None
    if forced is not None:
        prompt[0, list(forced)] = torch.tensor(list(forced.values()))
        image_prompts = SimpleNamespace(image_prompts_idx=set(forced), image_prompts=prompt)
    drawn, steps = [], (step for step in count() if step not in (forced or {}))

    def filter_and_choose(logits: Tensor, top_k: int, top_p: float) -> Tensor:
        kept = peer_stand_ins.top_k_top_p_filtering(logits, top_k, top_p)
        noisy = kept + gumbel_noise(torch.tensor([seed]), next(steps), logits.shape[1])
        return kept.masked_fill(noisy < noisy.max(), -torch.inf)

    def keep(tokens: Tensor) -> Tensor:
        drawn.append(tokens)
        return tokens

    pipelines.transformers.top_k_top_p_filtering = filter_and_choose
    pipelines.utils.torch_tensors_to_pil_list = list
    _, ppl = pipelines.generate_images(
        "",
        SimpleNamespace(encode_text=lambda *_, **__: text),
        model,
        SimpleNamespace(decode=keep),
        **SAMPLING,
        images_num=1,
        image_prompts=image_prompts,
    )
    return drawn[0][0], ppl[0]


@torch.no_grad()
def outputs(model: Any) -> dict[str, Any]:
    """Return the outputs that the parity test compares."""
    text = torch.tensor(TEXTS)
    image_length = model.image_seq_length
    image = torch.randint(0, ARCHITECTURE["image_vocab_size"], (len(TEXTS), image_length))
    tokens = torch.cat((text, image), dim=1)
    mask = torch.ones(len(TEXTS), 1, tokens.shape[1], tokens.shape[1]).tril()
    logits, _ = model(tokens, mask)
    loss, _ = model(tokens, mask, return_loss=True)
    drawn = [draw(model, row, seed) for seed, row in enumerate(text)]
    return {
        "architecture": ARCHITECTURE | {"version": model.hf_version},
        "tokens": tokens,
        "logits": logits,
        "loss": loss,
        "sampling": SAMPLING,
        "drawn_tokens": torch.stack([image for image, _ in drawn]),
        "drawn_ppl": torch.tensor([ppl for _, ppl in drawn]),
    }


@torch.no_grad()
def forced_outputs(model: Any) -> dict[str, Tensor]:
    """Return images with an image prompt of three rows at the top and two columns on the left."""
    width = ARCHITECTURE["image_width"]
    positions = range(model.image_seq_length)
    border = [at for at in positions if at // width < 3 or at % width < 2]
    given = torch.full((len(TEXTS), len(positions)), -1)
    torch.manual_seed(4)
    given[:, border] = torch.randint(0, ARCHITECTURE["image_vocab_size"], (len(TEXTS), len(border)))
    drawn = [
        draw(model, row, seed, {at: int(given[seed, at]) for at in border})
        for seed, row in enumerate(torch.tensor(TEXTS))
    ]
    ppl = torch.tensor([ppl for _, ppl in drawn])
    return {"given": given, "tokens": torch.stack([image for image, _ in drawn]), "ppl": ppl}


def main() -> None:
    """Write the checkpoint and the outputs of both versions."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for version in ("v2", "v3"):
        model = build(version)
        torch.save(model.state_dict(), FOLDER / f"dalle_{version}.bin")
        torch.save(outputs(model), FOLDER / f"dalle_{version}_outputs.pt")
        torch.save(forced_outputs(model), FOLDER / f"dalle_{version}_forced.pt")


if __name__ == "__main__":
    main()
