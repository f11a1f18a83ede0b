"""Token ids equal those of rudalle 1.1.3 and ruclip 0.0.2 (goldens: make_goldens_tokenizer.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.text.tokenizer import PACKAGES, Backend, Tokenizer

FOLDER = Path(__file__).parents[1] / "data" / "parity"
INSTALLED = [name for name in PACKAGES if importlib.util.find_spec(name)]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((FOLDER / "tokenizer.json").read_text())


@pytest.fixture(scope="module", params=INSTALLED)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    backend: Backend = request.param
    return Tokenizer.load(FOLDER / "tokenizer.bpe.model", backend)


def test_decoder_ids_equal_those_of_rudalle(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    for text, ids in zip(golden["texts"], golden["decoder"], strict=True):
        assert tokenizer.encode_text(text, len(ids)).ids == ids, repr(text)


def test_clip_ids_equal_those_of_ruclip(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    for text, ids in zip(golden["texts"], golden["clip"], strict=True):
        assert tokenizer.encode_clip(text, len(ids)).ids == ids, repr(text)


def test_decoded_texts_equal_those_of_youtokentome(
    tokenizer: Tokenizer, golden: dict[str, Any]
) -> None:
    for text, decoded in zip(golden["texts"], golden["decoded"], strict=True):
        assert tokenizer.decode(tokenizer.encode(text.lower().strip())) == decoded, repr(text)


def test_the_corpus_has_truncated_and_whole_texts(
    tokenizer: Tokenizer, golden: dict[str, Any]
) -> None:
    truncated = [tokenizer.encode_text(text, 24).truncated for text in golden["texts"]]
    truncated_for_clip = [tokenizer.encode_clip(text).truncated for text in golden["texts"]]
    assert {*truncated} == {*truncated_for_clip} == {True, False}
