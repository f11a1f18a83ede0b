"""Make the golden outputs of the reference ruCLIP Small.

The reference was never packaged. It is the folder `deprecated` of github.com/ai-forever/ru-clip, of
which this needs a checkout. Run it in the environment of the other goldens, from the root of the
repository:

    python -m tests.parity.make_goldens_ruclip_small FOLDER_OF_RU_CLIP

The networks are made small by constructor arguments and have the weights of `random_weights`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from PIL import Image

from tests.parity import peer_stand_ins
from tests.parity.make_goldens_vision import CAPTIONS, GOLDENS, fill, random_image, save

SIZES = dict(
    embed_dim=48, image_resolution=32, vision_layers=2, vision_width=128, vision_patch_size=8,
    vision_dim=40, context_length=24,
)  # fmt: skip
GPT2 = dict(vocab_size=300, n_positions=32, n_embd=64, n_layer=2, n_head=4)
TEXTS = [*CAPTIONS, "Это\tсиний\n\nКвадрат", "1, 2... it's 3!"]
IMAGE_SIZES = [(48, 48), (32, 32), (20, 20), (20, 45), (90, 30)]
EOS = 2


def main() -> None:
    """Write the golden file."""
    torch.set_num_threads(1)
    install_stand_ins(sys.argv[1])
    with torch.inference_mode():
        make_ruclip_small()


def make_ruclip_small() -> None:
    """Write ids, pixels and logits computed by the reference's functions."""
    from deprecated.clip.evaluate.utils import get_text_batch
    from deprecated.clip.model import get_image_batch
    from deprecated.clip.origin.clip import _transform
    from transformers import GPT2Tokenizer

    folder = GOLDENS / "ruclip_small"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(GPT2, indent=2) + "\n")
    train_tokenizer(folder)
    model = reference_network().eval()
    shapes = fill(model, seed=6)
    # The reference names these pieces later, but current transformers would add them as new pieces.
    tokenizer = GPT2Tokenizer.from_pretrained(
        folder, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    args = SimpleNamespace(cpu=True, seq_length=SIZES["context_length"])
    input_ids, mask = get_text_batch(TEXTS, tokenizer, args)
    arrays = [random_image(*size).permute(1, 2, 0).numpy() for size in IMAGE_SIZES]
    images = [Image.fromarray(array) for array in arrays]
    pixels = get_image_batch(images, _transform(SIZES["image_resolution"]), args)
    logits, _ = model({"x": pixels}, {"x": input_ids, "attention_mask": mask})
    save(
        "ruclip_small", shapes, config={**SIZES, "texts": TEXTS},
        **{f"picture{index}": torch.from_numpy(array) for index, array in enumerate(arrays)},
        input_ids=input_ids, pixels=pixels, logits=logits,
        image_latents=model.visual_encoder(pixels),
        text_latents=model.text_encoder(input_ids, attention_mask=mask),
    )  # fmt: skip


def reference_network() -> Any:
    """Build the reference: both towers with their projections."""
    from deprecated.clip.model import CLIP, TextEncoder, VisualEncoder
    from deprecated.clip.origin.model import VisualTransformer
    from transformers import GPT2Config, GPT2Model

    width = SIZES["vision_width"]
    tower = VisualTransformer(
        SIZES["image_resolution"], SIZES["vision_patch_size"], width, SIZES["vision_layers"],
        width // 64, SIZES["vision_dim"],
    )  # fmt: skip
    visual = VisualEncoder(tower, SIZES["vision_dim"], SIZES["embed_dim"])
    reader = GPT2Model(GPT2Config(**GPT2, bos_token_id=1, eos_token_id=EOS))
    text = TextEncoder(reader, EOS, GPT2["n_embd"], SIZES["embed_dim"])
    return CLIP(visual, text, img_transform=None)


def train_tokenizer(folder: Path) -> None:
    """Train byte-level pieces on the texts, with the special pieces at the ids of ruGPT-3."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer(add_prefix_space=False)
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    size = GPT2["vocab_size"]
    tokenizer.train_from_iterator(TEXTS * 20, size, show_progress=False, special_tokens=special)
    tokenizer.save_model(str(folder))


def install_stand_ins(source: str) -> None:
    """Make the reference importable, with empty stand-ins for unused imports."""
    peer_stand_ins.install()
    transforms = sys.modules["torchvision.transforms"]
    for stand_in in (Resize, CenterCrop):
        setattr(transforms, stand_in.__name__, stand_in)
    stand_ins: dict[str, dict[str, Any]] = {
        "pymorphy2": {"MorphAnalyzer": object},
        "skimage": {},
        "matplotlib": {},
        "matplotlib.pyplot": {},
        "transformers.file_utils": dict.fromkeys(("cached_path", "hf_bucket_url", "is_remote_url")),
    }
    for name, contents in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(contents)
        sys.modules[name] = module
    matplotlib: Any = sys.modules["matplotlib"]
    matplotlib.pyplot = sys.modules["matplotlib.pyplot"]
    sys.path.insert(0, source)


class Resize:
    """torchvision's transform for a single number: resize the shorter side to it."""

    def __init__(self, size: int, interpolation: Image.Resampling) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        width, height = (int(self.size * side / shorter) for side in image.size)
        return image.resize((width, height), self.interpolation)


class CenterCrop:
    """torchvision's transform for an image that is large enough."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = (round((side - self.size) / 2.0) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


if __name__ == "__main__":
    main()
