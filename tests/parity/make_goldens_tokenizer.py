"""Make tests/data/parity/tokenizer.{bpe.model,json} with rudalle 1.1.3 and ruclip 0.0.2.

Run this in a separate environment for the references, from the root of the repository:

    pip install --no-deps rudalle==1.1.3 ruclip==0.0.2
    pip install torch transformers einops more_itertools matplotlib tqdm huggingface_hub Pillow \\
        youtokentome
    python -m tests.parity.make_goldens_tokenizer

A small tokenizer is trained on captions and unusual strings. The ids are the output of the
originals for a corpus with unusual characters, empty texts and texts that are too long. Their
pipelines lower-case and strip a text before they encode it, so this does too.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from tests.parity import peer_stand_ins

peer_stand_ins.install()

import youtokentome  # noqa: E402
from ruclip.processor import RuCLIPProcessor  # noqa: E402
from rudalle.tokenizer import YTTMTokenizerWrapper  # noqa: E402

from rudalle_lib.demo.captions import caption_variant, english_variant  # noqa: E402
from rudalle_lib.demo.scenes import random_scene  # noqa: E402

FOLDER = Path(__file__).parents[1] / "data" / "parity"
DECODER_LENGTH, CLIP_LENGTH = 24, 77
EDGE_TEXTS = (
    "", " ", "\t\n", "\u2581", "\u2581 \u2581", "красный\u2581круг", " Красный  КРУГ\n",
    "Ёж и İ ß ǅ", "круг\u00a0и\u2003квадрат\u3000", "\ufeffкруг\u200b",
    "круг\x1cкруг\x85круг\x00", "😀😀 круг 👩\u200d🚀",
    "<PAD><UNK> <BOS>", "аааааа ааааа", "1234567890", "赤い円", "קו", "e\u0301 é", "x" * 300,
    "красный круг слева от синего квадрата " * 20, "😀" * 100, "квадрат," * 30,
)  # fmt: skip
ALPHABET = "абвкругё ,.-ABCabc123\u2581\u00a0\t\n😀🎨<>\u0301\ufffd\x00"


def captions(count: int, seed: int) -> list[str]:
    """Return captions of the demo in both languages."""
    rng = random.Random(seed)
    kinds = (caption_variant, english_variant)
    return [rng.choice(kinds)(random_scene(rng), rng) for _ in range(count)]


def odd_texts(count: int, seed: int) -> list[str]:
    """Return random strings of letters, different spaces, emoji and control characters."""
    rng = random.Random(seed)
    return ["".join(rng.choices(ALPHABET, k=rng.randrange(60))) for _ in range(count)]


def train(path: Path) -> None:
    """Train a tokenizer on captions and unusual characters."""
    odd = [text.replace("\n", " ").replace("\x00", "") for text in odd_texts(200, seed=1)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join([*captions(1000, seed=1), *odd]).lower())
        file.flush()
        youtokentome.BPE.train(data=file.name, model=str(path), vocab_size=400, n_threads=1)


def main() -> None:
    """Write the model and the ids."""
    path = FOLDER / "tokenizer.bpe.model"
    train(path)
    bpe = youtokentome.BPE(model=str(path))
    decoder = YTTMTokenizerWrapper(bpe)
    clip = object.__new__(RuCLIPProcessor)  # without its transforms, which need torchvision
    clip.tokenizer, clip.text_seq_length = bpe, CLIP_LENGTH
    texts = [*EDGE_TEXTS, *captions(40, seed=2), *odd_texts(60, seed=2)]
    tidy = [text.lower().strip() for text in texts]
    golden = {
        "texts": texts,
        "decoder": [decoder.encode_text(text, DECODER_LENGTH).tolist() for text in tidy],
        "clip": [clip.encode_text(text).tolist() for text in tidy],
        "decoded": [bpe.decode(bpe.encode([text]), ignore_ids=[0, 1, 2, 3])[0] for text in tidy],
    }
    (FOLDER / "tokenizer.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
