"""Translate texts with a Marian network, and detect translations that went wrong.

Decoding is greedy, so the same text always gets the same translation. A translation that repeats
itself, never ends, is empty or has an implausible length is never returned: the result is None with
the reason.

Paper: Junczys-Dowmunt et al., "Marian: Fast Neural Machine Translation in C++", arXiv:1804.00344.
Models: Tiedemann and Thottingal, OPUS-MT. Network and tokenizer: Hugging Face `transformers`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rudalle_lib.runtime.batching import group_by_key
from rudalle_lib.runtime.memory import in_fitting_batches
from rudalle_lib.text.tokenizer import WORD_MARK

if TYPE_CHECKING:
    from transformers import MarianMTModel, MarianTokenizer


MAX_UNKNOWN = 0.5
"""Share of unknown characters at which a text counts as not in the translator's language."""

LOOP_REPEATS = 4
"""Consecutive occurrences of a phrase of one to four words that count as a loop."""

MIN_PIECE_LETTERS = 2
"""Letters per piece below which a word counts as unknown."""

MAX_CACHED = 100_000
"""Translations that a `Translator` keeps for repeated texts."""


class Translation(NamedTuple):
    """A translated text, or None and the reason, such as "its translation never ends".

    Attributes:
        text: The translation.
        fault: Why there is none.
        confidence: Mean log-probability of its tokens, in nats; None if no network made it.
        unknown_words: Words of the source that the translator hardly knows.
    """

    text: str | None
    fault: str | None = None
    confidence: float | None = None
    unknown_words: tuple[str, ...] = ()


def detect_language(text: str, other: str = "en") -> str:
    """Detect the language by the script.

    Args:
        text: any text.
        other: the result for texts in other scripts.

    Returns:
        "ru" if at least half of the letters are Cyrillic, or if there are no letters; otherwise
        `other`.
    """
    letters = [character for character in text if character.isalpha()]
    cyrillic = sum("CYRILLIC" in unicodedata.name(character, "") for character in letters)
    return "ru" if 2 * cyrillic >= len(letters) else other


def language_of(given: str | None, text: str, setting: str, other: str = "en") -> str:
    """The language of a prompt: from its row, else from the run, else detected from the script.

    Args:
        given: language code in the prompt's row, or None.
        text: the prompt.
        setting: language code for the run, or "auto" to detect it.
        other: language code for detected texts that are not Russian; the one that the translator
            reads.
    """
    if given is not None:
        return given
    return detect_language(text, other) if setting == "auto" else setting


def in_russian(
    text: str, language: str, source: str, translated: Mapping[str, Translation]
) -> Translation:
    """A prompt in Russian: the prompt itself, or its translation.

    Args:
        text: the prompt.
        language: its language code, from `language_of`.
        source: code of the language that the translator reads.
        translated: translations of all texts in that language.

    Returns:
        The text in Russian, or None and the reason if the translator does not read its language.
    """
    if language == "ru":
        return Translation(text)
    if language == source:
        return translated[text]
    return Translation(None, f"the translator reads {source!r}")


class Translator:
    """A Marian network with its tokenizer; `weights.marian.load_marian` loads one."""

    def __init__(self, model: MarianMTModel, tokenizer: MarianTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_pieces: int = model.config.max_position_embeddings
        self._cache: dict[str, Translation] = {}

    def translate(
        self,
        texts: Sequence[str],
        language: str = "auto",
        batch_size: int = 32,
    ) -> list[str | None]:
        """Like `translations`, but without the reasons."""
        return [answer.text for answer in self.translations(texts, language, batch_size)]

    def translations(
        self, texts: Sequence[str], language: str = "auto", batch_size: int = 32
    ) -> list[Translation]:
        """Translate texts, each distinct text once, in batches of similar length.

        Args:
            texts: any texts; those in Russian are returned unchanged.
            language: "ru" if the texts are Russian, "auto" to detect the language of each text
                (`detect_language`), anything else if they are in the network's source language.
            batch_size: texts per batch.

        Returns:
            One translation per text, in order.

        Raises:
            OutOfMemoryError: a single text does not fit into memory.
        """
        done: dict[str, Translation] = {}
        pieces: dict[str, list[int]] = {}
        for text in dict.fromkeys(texts):
            spoken = detect_language(text) if language == "auto" else language
            if spoken == "ru":
                done[text] = Translation(text)
            elif text in self._cache:
                done[text] = self._cache[text]
            else:
                pieces[text], fault = self._pieces(text)
                if fault is not None:
                    done[text] = Translation(None, fault)
        waiting = sorted(pieces.keys() - done.keys(), key=lambda text: (len(pieces[text]), text))

        def work(batch: Sequence[int]) -> list[Translation]:
            return list(self._translate_batch([waiting[index] for index in batch], pieces))

        batches = group_by_key([None] * len(waiting), batch_size)
        for batch, answers in in_fitting_batches(batches, work, "translating a single text"):
            done.update(zip([waiting[index] for index in batch], answers, strict=True))
        self._remember({text: done[text] for text in waiting})
        return [done[text] for text in texts]

    def _remember(self, translations: dict[str, Translation]) -> None:
        self._cache.update(translations)
        while len(self._cache) > MAX_CACHED:
            del self._cache[next(iter(self._cache))]

    def _pieces(self, text: str) -> tuple[list[int], str | None]:
        """The ids of a text with EOS, and the reason if it cannot be translated."""
        line = " ".join(text.split())
        ids: list[int] = self.tokenizer(line)["input_ids"]
        if self._unknown_share(line) >= MAX_UNKNOWN:
            return ids, "the translator does not know its letters"
        if len(ids) > self.max_pieces:
            return (
                ids,
                f"it has {len(ids):,} pieces, the translator reads at most {self.max_pieces:,}",
            )
        return ids, None

    def _unknown_share(self, line: str) -> float:
        """Share of characters that no known piece covers, in 0..1; 1 if there are no characters."""
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
            if fault:
                yield Translation(None, fault)
                continue
            spoken = target[: target.index(self.tokenizer.eos_token_id) + 1]
            confidence = self._confidence(pieces[text], spoken)
            yield Translation(translation, None, confidence, self._unknown_words(text))

    @torch.inference_mode()
    def _confidence(self, source: list[int], target: list[int]) -> float:
        """Mean log-probability of the tokens of a translation, EOS included, in nats.

        Each text is computed alone, so that the value does not depend on its batch.
        """
        device = self.model.device
        start = self.model.config.decoder_start_token_id
        logits = self.model(
            input_ids=torch.tensor([source], device=device),
            decoder_input_ids=torch.tensor([[start, *target[:-1]]], device=device),
        ).logits[0]
        expected = torch.tensor(target, device=device)[:, None]
        return float(logits.float().log_softmax(dim=-1).gather(1, expected).mean())

    def _unknown_words(self, text: str) -> tuple[str, ...]:
        """Words that fall apart into pieces of a letter or two, as words it never learnt do."""
        spm = self.tokenizer.spm_source
        return tuple(
            word for word in text.split() if is_fragmented(word, spm.encode(word, out_type=str))
        )

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids int64 [B, S], padded on the right, and a mask int64 [B, S] that is 0 for padding."""
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
            # No correct translation is longer than this.
            max_new_tokens=min(self.max_pieces - 1, 2 * ids.shape[1] + 16),
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            bad_words_ids=[[config.pad_token_id]],  # it has a logit like any other token
        )
        targets: Tensor = self.model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings
        )
        rows: list[list[int]] = targets[:, 1:].tolist()  # without the start token
        return rows


def is_fragmented(word: str, pieces: Sequence[str]) -> bool:
    """Whether a word of at least three letters has so many pieces that it was hardly learnt.

    Args:
        word: A word, with its punctuation.
        pieces: Its SentencePiece pieces.
    """
    letters = sum(character.isalpha() for character in word)
    spoken = [piece for piece in pieces if any(map(str.isalpha, piece))]
    return letters >= 3 and letters < MIN_PIECE_LETTERS * len(spoken)


def fault_of(source: str, translation: str) -> str | None:
    """The reason why a translation is rejected, or None if it is plausible.

    Rejects translations that are empty, much longer or shorter than the source, or repetitive.
    """
    shorter, longer = sorted((len(source), len(translation)))
    if not translation:
        return "its translation is empty"
    if longer > 3 * shorter + 20:
        return f"{len(source)} characters became {len(translation)}"
    if _repeats(translation) >= max(LOOP_REPEATS, _repeats(source) + 1):
        return "its translation repeats itself"
    return None


def _repeats(text: str) -> int:
    """The largest number of consecutive occurrences of any phrase of one to four words."""
    words, max_repeats = text.lower().split(), 1
    for size in range(1, 5):
        run = 0
        for index in range(size, len(words)):
            run = run + 1 if words[index] == words[index - size] else 0
            max_repeats = max(max_repeats, run // size + 1)
    return max_repeats
