"""Translation of prompts by a Marian network, with guards against its ways of failing.

Decoding is greedy, so the same text always gives the same translation. A translation that loops,
never ends, is empty or has an odd length is given as None, with the reason, never passed on.

Paper: Junczys-Dowmunt et al., "Marian: Fast Neural Machine Translation in C++", arXiv:1804.00344;
models: Tiedemann and Thottingal, OPUS-MT. Network and tokenizer: Hugging Face `transformers`.
"""

import json
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from rudalle_lib.batches import alike
from rudalle_lib.checkpoints import StateDict, check_match, load_state_dict
from rudalle_lib.conversion import safe_file
from rudalle_lib.errors import WeightsError
from rudalle_lib.memory import in_fitting_batches
from rudalle_lib.tokenizer import WORD_MARK

if TYPE_CHECKING:
    from transformers import MarianMTModel, MarianTokenizer

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names under which weights are looked for, the preferred one first."""

EMBEDDINGS = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
"""Names of one and the same tensor, of which a file may leave out all but one."""

COMPUTED = (
    "final_logits_bias",
    "model.encoder.embed_positions.weight",
    "model.decoder.embed_positions.weight",
)
"""What the network makes itself: a bias of zeros and tables of sines, unless the file has them."""

MAX_UNKNOWN = 0.5
"""Share of unknown characters from which on a text is not in the translator's language."""

LOOP_REPEATS = 4
"""Times that up to four words may follow themselves before a translation is a loop."""


MAX_KNOWN = 100_000
"""Translations that are kept for texts that come again."""


class Translation(NamedTuple):
    """A text in the other language, or None and why there is none, as in "it repeats itself"."""

    text: str | None
    fault: str | None = None


def detect_language(text: str, other: str = "en") -> str:
    """Tell the language by the script: "ru" if at least half of the letters are Cyrillic.

    A text without letters needs no translation and counts as "ru"; any other script as `other`.
    """
    letters = [character for character in text if character.isalpha()]
    cyrillic = sum("CYRILLIC" in unicodedata.name(character, "") for character in letters)
    return "ru" if 2 * cyrillic >= len(letters) else other


def language_of(given: str | None, text: str, setting: str, other: str = "en") -> str:
    """The language of a prompt: as its row says, else as the run says, else as the script tells.

    `other` is what the translator reads, and what `detect_language` takes for not Russian.
    """
    if given is not None:
        return given
    return detect_language(text, other) if setting == "auto" else setting


def in_russian(
    text: str, language: str, source: str, translated: Mapping[str, Translation]
) -> Translation:
    """A prompt in Russian: itself, or its translation where it is in the translator's language.

    Args:
        text: of the prompt.
        language: its own, as `language_of` tells.
        source: what the translator reads.
        translated: the translation of every text in that language.
    """
    if language == "ru":
        return Translation(text)
    if language == source:
        return translated[text]
    return Translation(None, f"the translator reads {source!r}")


class Translator:
    """A Marian network with its tokenizer. Make one with `Translator.load`."""

    def __init__(self, model: "MarianMTModel", tokenizer: "MarianTokenizer") -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_pieces: int = model.config.max_position_embeddings
        self._known: dict[str, Translation] = {}

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load a folder in the layout of the OPUS-MT repositories.

        Args:
            folder: holds `config.json`, `source.spm`, `target.spm`, `vocab.json` and the weights as
                `model.safetensors` or `pytorch_model.bin`.
            device: where the network goes.
            dtype: of its weights.

        Raises:
            WeightsError: a file is missing or broken, or the weights do not fit.
        """
        tokenizer = load_tokenizer(folder)
        model = _load_model(folder).to(device=device, dtype=dtype)
        return cls(model.eval().requires_grad_(False), tokenizer)

    def translate(
        self,
        texts: Sequence[str],
        language: str = "auto",
        batch_size: int = 32,
    ) -> list[str | None]:
        """As `translations`, without the reasons."""
        return [answer.text for answer in self.translations(texts, language, batch_size)]

    def translations(
        self, texts: Sequence[str], language: str = "auto", batch_size: int = 32
    ) -> list[Translation]:
        """Translate texts; each distinct text once, in batches of similar length.

        Args:
            texts: any texts; those in Russian are given back as they are.
            language: of the texts: "ru", or any other for the one that the network reads; "auto"
                tells it text by text (`detect_language`).
            batch_size: texts at once.

        Returns:
            A translation for each text, in order.
        """
        done: dict[str, Translation] = {}
        pieces: dict[str, list[int]] = {}
        for text in dict.fromkeys(texts):
            spoken = detect_language(text) if language == "auto" else language
            if spoken == "ru":
                done[text] = Translation(text)
            elif text in self._known:
                done[text] = self._known[text]
            else:
                pieces[text], fault = self._pieces(text)
                if fault is not None:
                    done[text] = Translation(None, fault)
        waiting = sorted(pieces.keys() - done.keys(), key=lambda text: (len(pieces[text]), text))

        def work(batch: Sequence[int]) -> list[Translation]:
            return list(self._translate_batch([waiting[index] for index in batch], pieces))

        batches = alike([None] * len(waiting), batch_size)
        for batch, answers in in_fitting_batches(batches, work, "translating a single text"):
            done.update(zip([waiting[index] for index in batch], answers, strict=True))
        self._keep({text: done[text] for text in waiting})
        return [done[text] for text in texts]

    def _keep(self, fresh: dict[str, Translation]) -> None:
        self._known.update(fresh)
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def _pieces(self, text: str) -> tuple[list[int], str | None]:
        """Ids of a text with EOS, and why it cannot be translated, if so."""
        line = " ".join(text.split())
        ids: list[int] = self.tokenizer(line)["input_ids"]
        if self._unknown_share(line) >= MAX_UNKNOWN:
            return ids, "the translator does not know its letters"
        if len(ids) > self.max_pieces:
            return ids, f"it has {len(ids):,} pieces, the translator reads {self.max_pieces:,}"
        return ids, None

    def _unknown_share(self, line: str) -> float:
        """Share of characters that no piece of the source language covers; 1 if there are none."""
        spm = self.tokenizer.spm_source
        pieces: list[str] = spm.encode(line, out_type=str)
        lengths = [len(piece.strip(WORD_MARK)) for piece in pieces]
        unknown = [spm.piece_to_id(piece) == spm.unk_id() for piece in pieces]
        total = sum(lengths)
        return sum(n for n, u in zip(lengths, unknown, strict=True) if u) / total if total else 1.0

    def _translate_batch(
        self, texts: Sequence[str], pieces: dict[str, list[int]]
    ) -> Iterator[Translation]:
        ids, mask = self._padded([pieces[text] for text in texts])
        for text, target in zip(texts, self._generate(ids, mask), strict=True):
            ended = self.tokenizer.eos_token_id in target
            translation = self.tokenizer.decode(
                target, skip_special_tokens=True, use_source_tokenizer=False
            ).strip()
            fault = fault_of(text, translation) if ended else "its translation never ends"
            yield Translation(None if fault else translation, fault)

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids int64 [B, S], padded on the right, and the mask of what is not padding."""
        width, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device)

    @torch.inference_mode()
    def _generate(self, ids: Tensor, mask: Tensor) -> list[list[int]]:
        from transformers import GenerationConfig

        config = self.model.config
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            # Twice the source and a little is longer than any sound translation.
            max_new_tokens=min(self.max_pieces - 1, 2 * ids.shape[1] + 16),
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            bad_words_ids=[[config.pad_token_id]],  # the networks give it a logit like any other
        )
        targets: Tensor = self.model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings
        )
        rows: list[list[int]] = targets[:, 1:].tolist()  # without the start token
        return rows


def fault_of(source: str, translation: str) -> str | None:
    """Why a translation is not to be trusted: empty, of an odd length, a loop; None if it is."""
    shorter, longer = sorted((len(source), len(translation)))
    if not translation:
        return "its translation is empty"
    if longer > 3 * shorter + 20:
        return f"{len(source)} characters became {len(translation)}"
    if _repeats(translation) >= max(LOOP_REPEATS, _repeats(source) + 1):
        return "its translation repeats itself"
    return None


def _repeats(text: str) -> int:
    """How often, at most, one to four words stand right behind themselves, the first time too."""
    words, most = text.lower().split(), 1
    for size in range(1, 5):
        run = 0
        for index in range(size, len(words)):
            run = run + 1 if words[index] == words[index - size] else 0
            most = max(most, run // size + 1)
    return most


def load_tokenizer(folder: Path) -> "MarianTokenizer":
    """Read `source.spm`, `target.spm` and `vocab.json`; a `WeightsError` names what is wrong."""
    from transformers import MarianTokenizer

    files = {role: folder / name for role, name in (
        ("source_spm", "source.spm"), ("target_spm", "target.spm"), ("vocab", "vocab.json"),
    )}  # fmt: skip
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise WeightsError(f"the translator lacks {', '.join(missing)}")
    try:
        with warnings.catch_warnings():
            # It recommends sacremoses, which this class would load but not use.
            warnings.simplefilter("ignore")
            # Long texts are rejected here, with a reason; the tokenizer would only log them.
            return MarianTokenizer(
                **{role: str(path) for role, path in files.items()}, model_max_length=2**30
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise WeightsError(
            f"cannot read the translator's vocabulary in {folder}: {error}"
        ) from error


def _load_model(folder: Path) -> "MarianMTModel":
    from transformers import GenerationConfig, MarianConfig, MarianMTModel

    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise WeightsError(f"the translator has no weights: expected {folder / WEIGHTS[0]}")
    try:
        values: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        model = MarianMTModel(MarianConfig.from_dict(values))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"cannot read {folder / 'config.json'}: {error}") from error
    expected = model.state_dict()
    state = _completed(load_state_dict(safe_file(weights)), expected)
    check_match(expected, state, weights)
    model.load_state_dict(state)
    # OPUS-MT asks for beams, and for an EOS forced on texts that run on, which must be seen here.
    model.generation_config = GenerationConfig()
    return model


def _completed(state: StateDict, expected: StateDict) -> StateDict:
    """Fill in the tensors that a file may leave out."""
    computed = {name: expected[name] for name in COMPUTED if name in expected}
    shared = next((state[name] for name in EMBEDDINGS if name in state), None)
    tied = {name: shared for name in EMBEDDINGS if name in expected and shared is not None}
    return {**computed, **tied, **state}
