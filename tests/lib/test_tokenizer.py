"""Both tokenizer packages give the same ids, and captions are laid out as the networks expect."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from rudalle_lib.demo.captions import caption_variant, english_variant, russian_caption
from rudalle_lib.demo.scenes import random_scene
from rudalle_lib.errors import ConfigError, WeightsError
from rudalle_lib.tokenizer import BpeModel, Tokenizer

pytest.importorskip("youtokentome")

from rudalle_lib.training.tokenizer import train_tokenizer

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
    """Random strings: from one alphabet, from all of them, or of any code points at all."""
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
    """A model whose pieces hold emoji, tags, runs of one letter and unusual spaces."""
    folder = tmp_path_factory.mktemp("odd_model")
    rng = random.Random(2)
    lines = ("".join(rng.choices(rng.choice(ALPHABETS), k=40)) for _ in range(3000))
    (folder / "text.txt").write_text("\n".join(lines), "utf-8", newline="\n")
    return train_tokenizer(folder / "text.txt", folder / "bpe.model", 1500)


@pytest.fixture(scope="session")
def tokenizer(caption_model: Path) -> Tokenizer:
    return Tokenizer.load(caption_model)


@pytest.mark.parametrize("model", ["caption_model", "odd_model"])
def test_both_backends_give_equal_ids_on_20000_strings(
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


def test_half_a_surrogate_pair_is_one_unknown_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("круг \ud83d") == tokenizer.encode("круг \ufffd")
    assert tokenizer.encode("круг \ud83d")[-1] == UNK


def test_decoder_layout_is_bos_text_eos_zeros(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.encode("красный круг")
    ids, truncated = tokenizer.encode_text("  Красный КРУГ\n", 32)
    assert ids == [BOS, *pieces, EOS] + [0] * (30 - len(pieces))
    assert not truncated


def test_decoder_layout_cut_at_length_drops_eos_and_says_so(tokenizer: Tokenizer) -> None:
    exact = len(tokenizer.encode("красный круг")) + 2
    assert not tokenizer.encode_text("красный круг", exact).truncated
    ids, truncated = tokenizer.encode_text("красный круг", exact - 1)
    assert truncated
    assert len(ids) == exact - 1
    assert EOS not in ids


def test_clip_layout_keeps_eos_when_cut(tokenizer: Tokenizer) -> None:
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


def test_training_is_quiet_and_repeatable(
    caption_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = train_tokenizer(caption_model.parent / "text.txt", tmp_path / "bpe.model", 256)
    assert again.read_bytes() == caption_model.read_bytes()
    assert capfd.readouterr().err == ""


def test_training_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text file"):
        train_tokenizer(tmp_path / "absent.txt", tmp_path / "bpe.model", 256)
    (tmp_path / "text.txt").write_text("синий квадрат\n", "utf-8")
    with pytest.raises(ConfigError, match="cannot train 5 pieces"):
        train_tokenizer(tmp_path / "text.txt", tmp_path / "bpe.model", 5)


@pytest.mark.parametrize(
    "content", ["", "hello\n", "1 1\n1072 4\n1 0 2 3\n", "1 0\n1072 9\n1 0 2 3\n", '{"vocab": {}}']
)
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: str) -> None:
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
