"""Both tokenizer packages return the same ids, in the layouts that the networks expect."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rudalle_lib.demo.captions import caption_variant, english_variant, russian_caption
from rudalle_lib.demo.scenes import random_scene
from rudalle_lib.errors import ConfigError, WeightsError
from rudalle_lib.text.tokenizer import PACKAGES, Backend, BpeModel, Tokenizer
from tests.support.limited_process import call_limited

pytest.importorskip("youtokentome")

from rudalle_lib.training.demo.tokenizer import train_tokenizer

BOS, EOS, UNK = 2, 3, 1

ALPHABETS = (
    "абвгдеёжзийклмнопрстуфхцчшщъыьэюя -.,!?",
    "ABCdefghijklmnopqrstuvwxyz0123456789 <>{}[]()|\\/'\"",
    " \t\n\v\f\r\u2581\u2581\u00a0\u2003\u2028\u3000\u200b\ufeff\x1c\x85абк",
    "аааабббк ",
    "😀🎨👩\u200d🚀🇷🇺é̈\u0301ñßİıǅ",
    "<PAD><UNK><BOS><EOS> pad",
    "\x00\x01\x7fкруг\ufffd\U0010ffff",
)


def captions(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        scene = random_scene(rng)
        make = rng.choice((caption_variant, english_variant, lambda s, _: russian_caption(s)))
        yield make(scene, rng)


def odd_strings(count: int, seed: int) -> Iterator[str]:
    """Random strings from one alphabet, from all alphabets, or of any code points."""
    rng = random.Random(seed)
    for _ in range(count):
        kind, length = rng.random(), rng.randrange(50)
        if kind < 0.1:
            codes = (rng.randrange(0x110000) for _ in range(length))
            yield "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        else:
            alphabet = rng.choice(ALPHABETS) if kind < 0.6 else "".join(ALPHABETS)
            yield "".join(rng.choices(alphabet, k=length))


@pytest.fixture(scope="session")
def caption_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caption_model")
    (folder / "text.txt").write_text("\n".join(captions(2000, seed=1)).lower(), "utf-8")
    return train_tokenizer(folder / "text.txt", folder / "bpe.model", 256)


@pytest.fixture(scope="session")
def odd_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose pieces include emoji, tags, runs of one letter and unusual spaces."""
    folder = tmp_path_factory.mktemp("odd_model")
    rng = random.Random(2)
    lines = ("".join(rng.choices(rng.choice(ALPHABETS), k=40)) for _ in range(3000))
    (folder / "text.txt").write_text("\n".join(lines), "utf-8", newline="\n")
    return train_tokenizer(folder / "text.txt", folder / "bpe.model", 1500)


@pytest.fixture(scope="session")
def tokenizer(caption_model: Path) -> Tokenizer:
    return Tokenizer.load(caption_model)


@pytest.mark.parametrize("model", ["caption_model", "odd_model"])
def test_both_backends_return_equal_ids_for_20000_strings(
    model: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(model)
    ours = Tokenizer.load(path, "tokenizers")
    reference = Tokenizer.load(path, "youtokentome")
    long = ["а" * 5000, "круг " * 3000, "😀" * 2000, "ab" * 3000]
    edge = ["", " ", "\u2581", "\u2581\u2581 \n", *long]
    texts = [*edge, *captions(5000, seed=3), *odd_strings(15000, seed=4)]
    assert [t for t in texts if ours.encode(t) != reference.encode(t)] == []


def test_auto_prefers_the_tokenizer_of_the_published_models(caption_model: Path) -> None:
    assert Tokenizer.load(caption_model).backend == "youtokentome"


def test_model_file_is_read_as_youtokentome_reads_it(odd_model: Path) -> None:
    youtokentome = pytest.importorskip("youtokentome")
    ours = BpeModel.read(odd_model)
    assert list(ours.pieces[4:]) == youtokentome.BPE(str(odd_model)).vocab()[4:]
    assert (ours.pad, ours.unk, ours.bos, ours.eos) == (0, 1, 2, 3)


def test_a_literal_word_mark_is_a_space(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("красный\u2581круг") == tokenizer.encode("красный круг")


def test_an_unpaired_surrogate_is_one_unknown_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("круг \ud83d") == tokenizer.encode("круг \ufffd")
    assert tokenizer.encode("круг \ud83d")[-1] == UNK


def test_decoder_layout_is_bos_text_eos_padding(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.encode("красный круг")
    ids, truncated = tokenizer.encode_text("  Красный КРУГ\n", 32)
    assert ids == [BOS, *pieces, EOS] + [0] * (30 - len(pieces))
    assert not truncated


def test_a_truncated_caption_for_the_decoder_has_no_eos(tokenizer: Tokenizer) -> None:
    exact = len(tokenizer.encode("красный круг")) + 2
    assert not tokenizer.encode_text("красный круг", exact).truncated
    ids, truncated = tokenizer.encode_text("красный круг", exact - 1)
    assert truncated
    assert len(ids) == exact - 1
    assert EOS not in ids


def test_a_truncated_caption_for_ruclip_keeps_its_eos(tokenizer: Tokenizer) -> None:
    ids, truncated = tokenizer.encode_clip("красный круг " * 40)
    assert (len(ids), ids[0], ids[-1], truncated) == (77, BOS, EOS, True)
    ids, truncated = tokenizer.encode_clip("Красный круг")
    assert (len(ids), ids[0], ids.count(EOS), truncated) == (77, BOS, 1, False)


def test_empty_text_is_bos_eos(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_text("", 4) == ([BOS, EOS, 0, 0], False)


def test_decode_undoes_the_decoder_layout(tokenizer: Tokenizer) -> None:
    for text in captions(50, seed=5):
        ids = tokenizer.encode_text(text, 64).ids
        assert tokenizer.decode(ids) == text.lower()
    position_pad = tokenizer.vocab_size + 5
    assert tokenizer.decode([*tokenizer.encode("круг"), position_pad]) == "круг"


@pytest.mark.parametrize(
    "content", ["", "hello\n", "1 1\n1072 4\n1 0 2 3\n", "1 0\n1072 9\n1 0 2 3\n", '{"vocab": {}}']
)
def test_a_file_that_is_not_a_model_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bpe.model").write_text(content, "utf-8")
    with pytest.raises(WeightsError, match="bpe.model is not a YouTokenToMe model"):
        Tokenizer.load(tmp_path / "bpe.model")


def test_binary_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bpe.model").write_bytes(b"\x80\x04\xff\xfe")
    with pytest.raises(WeightsError, match="is not a YouTokenToMe model"):
        Tokenizer.load(tmp_path / "bpe.model")
    with pytest.raises(WeightsError, match="cannot read the tokenizer model"):
        Tokenizer.load(tmp_path / "absent.model")


def test_unknown_backend_lists_the_known_ones(caption_model: Path) -> None:
    with pytest.raises(ConfigError, match="expected auto, youtokentome, tokenizers"):
        Tokenizer.load(caption_model, "sentencepiece")  # type: ignore[arg-type]


def model_file(merges: list[str], characters: tuple[str, ...] = ("9601 4", "97 5")) -> str:
    head = f"{len(characters)} {len(merges)}"
    return "\n".join([head, *characters, *merges, "1 0 2 3", ""])


@pytest.mark.parametrize("backend", ["tokenizers", "youtokentome"])
def test_a_small_model_is_read(tmp_path: Path, backend: Backend) -> None:
    (tmp_path / "bpe.model").write_text(model_file(["5 5 6", "6 6 7"]))
    tokenizer = Tokenizer.load(tmp_path / "bpe.model", backend)
    assert tokenizer.encode("aaaaa") == [4, 7, 5]
    assert tokenizer.decode([4, 7, 5]) == "aaaaa"


DOUBLING = [f"{number} {number} {number + 1}" for number in range(5, 40)]
"""Every merge doubles the length of a piece: 34 billion characters in 363 bytes."""

BOMBS = {
    "doubling": (model_file(DOUBLING), "one has 1,024 characters"),
    "many long pieces": (
        model_file([*DOUBLING[:9], *(f"14 14 {number}" for number in range(15, 20_000))]),
        "its pieces are too long",
    ),
    "a huge count": (f"{2**62} {2**62}\n1 0 2 3\n", "number of lines"),
    "negative counts": ("-5 7\n1 2\n1 2 3 4\n", "number of lines"),
    "many digits": ("9" * 5_000 + " 0\n", "not a YouTokenToMe model"),
    "many lines": ("0 0\n" * 3_000_000, "more than 8,388,608 bytes"),
    "lines": ("1 0\n" * 2_000_000, "number of lines"),
    "no mark of words": (model_file([], ("96 4", "97 5")), "mark of words is missing"),
    "a character twice": (model_file([], ("9601 4", "9601 5")), "a character is listed twice"),
    "a surrogate": (model_file([], ("9601 4", "55296 5")), "not in Unicode"),
    "no character": (model_file([], ("9601 4", "1114112 5")), "not a YouTokenToMe model"),
    "an id twice": (model_file(["5 5 5"]), "the ids are not those from 0 on"),
    "a large id": (model_file([], ("9601 4", f"97 {2**40}")), "the ids are not those from 0"),
    "a pointer": ("version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "a page": ("<!doctype html>", "an HTML page"),
}


def load_limited(path: str) -> int:
    return Tokenizer.load(path).vocab_size


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_sentence(name: str, tmp_path: Path) -> None:
    content, reason = BOMBS[name]
    (tmp_path / "bpe.model").write_text(content)
    found = call_limited(load_limited, str(tmp_path / "bpe.model"))
    assert found.error is not None and reason in found.error and len(found.error) < 500
    assert found.seconds < 15 and found.megabytes < 900


@settings(deadline=20_000, max_examples=150, suppress_health_check=[
    HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_a_damaged_model_is_a_tokenizer_or_an_error(data: st.DataObject, tmp_path: Path) -> None:
    """Both packages, one of them in C++."""
    lines = model_file(["5 5 6", "6 6 7"]).splitlines()
    number = st.sampled_from(["-1", "0", "4", "5", "6", "7", "8", "97", "9601", str(2**64), "x"])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(lines) - 1))
        words = lines[position].split()
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(number)
        lines[position] = " ".join(words)
    if data.draw(st.booleans()):
        lines = data.draw(st.permutations(lines))
    (tmp_path / "bpe.model").write_text("\n".join(lines))
    for backend in PACKAGES:
        try:
            tokenizer = Tokenizer.load(tmp_path / "bpe.model", backend)  # type: ignore[arg-type]
            assert tokenizer.decode(tokenizer.encode("aaaa a b")).count("a") <= 5
        except WeightsError as error:
            assert len(str(error)) < 500
