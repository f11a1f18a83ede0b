"""Make tests/data/parity/dalle_{v2,v3}.bin, *_outputs.pt, *_forced.pt with rudalle 1.1.3.

Run in an environment of the reference's own, from the root of the repository:

    pip install --no-deps rudalle==1.1.3
    pip install torch transformers einops more_itertools matplotlib tqdm huggingface_hub Pillow
    python tests/parity/make_goldens_dalle.py

The checkpoints are random and shrunken, in the layout of the published files (a pickled state
dict, mask buffers included). The outputs are what the original makes of them: logits, the training
loss, and pictures with their ppl from the original's own sampling loop, given our noise: drawn
freely, and from an image prompt.
"""

import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import peer_stand_ins  # noqa: E402

peer_stand_ins.install()

from rudalle import pipelines  # noqa: E402
from rudalle.dalle.model import DalleModel  # noqa: E402

from rudalle_lib.noise import gumbel_noise  # noqa: E402

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
SAMPLING = dict(temperature=1.1, top_k=12, top_p=0.9)
TEXTS = [[2, 9, 27, 14, 5, 3, 0, 0], [2, 28, 6, 0, 11, 29, 8, 12]]


def build(version: str) -> Any:
    """A small reference network whose norms and biases matter too."""
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
    """The original's sampling loop: image tokens [H * W] and its ppl.

    Its filter is the one place where noise can be handed in: all but the winner are dropped there.
    `forced` are the tokens of an image prompt, by number; they do not pass the filter.
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
    """All that the parity test compares."""
    text = torch.tensor(TEXTS)
    cells = model.image_seq_length
    image = torch.randint(0, ARCHITECTURE["image_vocab_size"], (len(TEXTS), cells))
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
    """Pictures that begin from an image prompt: three rows above, two columns on the left."""
    width = ARCHITECTURE["image_width"]
    cells = range(model.image_seq_length)
    border = [cell for cell in cells if cell // width < 3 or cell % width < 2]
    given = torch.full((len(TEXTS), len(cells)), -1)
    torch.manual_seed(4)
    given[:, border] = torch.randint(0, ARCHITECTURE["image_vocab_size"], (len(TEXTS), len(border)))
    drawn = [
        draw(model, row, seed, {cell: int(given[seed, cell]) for cell in border})
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
