"""Captions: Russian with correct gender and case, English, and their variants."""

from __future__ import annotations

import random
import re

import pytest

from rudalle_lib.demo.captions import (
    NOUNS,
    adjective_ru,
    background_ru,
    caption_variant,
    english_caption,
    english_variant,
    partial_caption,
    russian_caption,
)
from rudalle_lib.demo.scenes import BACKGROUNDS, COLOURS, SHAPES, Figure, Scene, random_scene

SENTENCES = [
    (
        Scene(
            "black",
            (Figure("circle", "blue", "big"), Figure("triangle", "yellow", "medium")),
            "left_of",
        ),
        "большой синий круг слева от жёлтого треугольника на чёрном фоне",
        "a big blue circle to the left of a yellow triangle on a black background",
    ),
    (
        Scene("white", (Figure("square", "black", "medium"),)),
        "чёрный квадрат на белом фоне",
        "a black square on a white background",
    ),
    (
        Scene("grey", (Figure("bar", "blue", "big"),)),
        "большая синяя полоса на сером фоне",
        "a big blue bar on a grey background",
    ),
    (
        Scene(
            "beige",
            (Figure("bar", "red", "small"), Figure("bar", "blue", "small")),
            "right_of",
        ),
        "маленькая красная полоса справа от маленькой синей полосы на бежевом фоне",
        "a small red bar to the right of a small blue bar on a beige background",
    ),
    (
        Scene(
            "grey",
            (Figure("cross", "green", "small"), Figure("bar", "violet", "big")),
            "above",
        ),
        "маленький зелёный крест над большой фиолетовой полосой на сером фоне",
        "a small green cross above a big violet bar on a grey background",
    ),
    (
        Scene(
            "white",
            (Figure("triangle", "orange", "medium"), Figure("square", "blue", "big")),
            "below",
        ),
        "оранжевый треугольник под большим синим квадратом на белом фоне",
        "an orange triangle below a big blue square on a white background",
    ),
    (
        Scene(
            "black",
            (Figure("circle", "white", "big"), Figure("cross", "orange", "small")),
            "below",
        ),
        "большой белый круг под маленьким оранжевым крестом на чёрном фоне",
        "a big white circle below a small orange cross on a black background",
    ),
    (
        Scene(
            "white",
            (Figure("bar", "black", "medium"), Figure("circle", "violet", "small")),
            "above",
        ),
        "чёрная полоса над маленьким фиолетовым кругом на белом фоне",
        "a black bar above a small violet circle on a white background",
    ),
    (
        Scene(
            "beige",
            (Figure("square", "green", "big"), Figure("circle", "red", "big")),
            "right_of",
        ),
        "большой зелёный квадрат справа от большого красного круга на бежевом фоне",
        "a big green square to the right of a big red circle on a beige background",
    ),
    (
        Scene(
            "grey",
            (Figure("triangle", "white", "medium"), Figure("bar", "yellow", "medium")),
            "below",
        ),
        "белый треугольник под жёлтой полосой на сером фоне",
        "a white triangle below a yellow bar on a grey background",
    ),
    (
        Scene(
            "beige",
            (Figure("cross", "blue", "medium"), Figure("square", "orange", "small")),
            "left_of",
        ),
        "синий крест слева от маленького оранжевого квадрата на бежевом фоне",
        "a blue cross to the left of a small orange square on a beige background",
    ),
]
ADJECTIVES = {
    "red": "красный красного красным красная красной красной",
    "blue": "синий синего синим синяя синей синей",
    "yellow": "жёлтый жёлтого жёлтым жёлтая жёлтой жёлтой",
    "green": "зелёный зелёного зелёным зелёная зелёной зелёной",
    "orange": "оранжевый оранжевого оранжевым оранжевая оранжевой оранжевой",
    "violet": "фиолетовый фиолетового фиолетовым фиолетовая фиолетовой фиолетовой",
    "black": "чёрный чёрного чёрным чёрная чёрной чёрной",
    "white": "белый белого белым белая белой белой",
    "small": "маленький маленького маленьким маленькая маленькой маленькой",
    "big": "большой большого большим большая большой большой",
    "large": "крупный крупного крупным крупная крупной крупной",
    "little": "небольшой небольшого небольшим небольшая небольшой небольшой",
}
"""Nominative, genitive and instrumental, first masculine, then feminine."""

NOUN_FORMS = {
    "square": "квадрат квадрата квадратом",
    "circle": "круг круга кругом",
    "triangle": "треугольник треугольника треугольником",
    "cross": "крест креста крестом",
    "bar": "полоса полосы полосой",
    "star": "звезда звезды звездой",
}
BACKGROUND_WORDS = {"white": "белом", "black": "чёрном", "beige": "бежевом", "grey": "сером"}
CASES = ("nominative", "genitive", "instrumental")
RUSSIAN_WORDS = {
    *" ".join([*ADJECTIVES.values(), *NOUN_FORMS.values(), *BACKGROUND_WORDS.values()]).split(),
    *("слева", "справа", "от", "над", "под", "на", "фоне"),
}
ENGLISH_WORDS = {
    *(*COLOURS, *BACKGROUNDS, *SHAPES),
    *("a", "an", "the", "on", "background", "to", "left", "right", "of"),
    *("above", "over", "below", "under", "big", "large", "small", "little", "tiny"),
    *("purple", "gray", "stripe"),
}


def scenes(count: int = 300) -> list[Scene]:
    rng = random.Random(21)
    return [random_scene(rng, held_out=i % 5 == 0) for i in range(count)]


@pytest.mark.parametrize(("scene", "russian", "english"), SENTENCES)
def test_known_good_sentences(scene: Scene, russian: str, english: str) -> None:
    assert russian_caption(scene) == russian
    assert english_caption(scene) == english


@pytest.mark.parametrize("word", ADJECTIVES)
def test_adjectives_agree_in_gender_and_case(word: str) -> None:
    forms = [adjective_ru(word, feminine, case) for feminine in (False, True) for case in CASES]
    assert forms == ADJECTIVES[word].split()


def test_nouns_in_all_cases() -> None:
    forms = {n: [getattr(noun, case) for case in CASES] for n, noun in NOUNS.items()}
    assert forms == {name: text.split() for name, text in NOUN_FORMS.items()}
    assert [name for name, noun in NOUNS.items() if noun.feminine] == ["bar", "star"]


def test_backgrounds() -> None:
    assert {name: background_ru(name) for name in BACKGROUNDS} == {
        name: f"на {word} фоне" for name, word in BACKGROUND_WORDS.items()
    }
    assert background_ru("yellow") == "на жёлтом фоне"


def test_captions_consist_of_known_words() -> None:
    rng = random.Random(1)
    known = RUSSIAN_WORDS | {word.replace("ё", "е") for word in RUSSIAN_WORDS}
    for scene in scenes():
        assert set(russian_caption(scene).split()) <= RUSSIAN_WORDS
        assert set(caption_variant(scene, rng).split()) <= known
        assert set(english_caption(scene).split()) <= ENGLISH_WORDS
        assert set(re.findall(r"\w+", english_variant(scene, rng).lower())) <= ENGLISH_WORDS


def test_different_scenes_have_different_captions() -> None:
    different = set(scenes())
    assert len({russian_caption(scene) for scene in different}) == len(different)
    assert len({english_caption(scene) for scene in different}) == len(different)


def test_russian_variants_change_size_words_order_and_letters() -> None:
    scene, russian, _ = SENTENCES[4]
    rng = random.Random(2)
    variants = {caption_variant(scene, rng) for _ in range(200)}
    assert russian in variants
    assert "на сером фоне " + russian.removesuffix(" на сером фоне") in variants
    assert russian.replace("ё", "е") in variants
    assert "небольшой зелёный крест над крупной фиолетовой полосой на сером фоне" in variants
    assert len(variants) == 8


def test_partial_captions_omit_colours_or_the_background_but_not_sizes() -> None:
    scene = Scene("beige", (Figure("bar", "red", "small"), Figure("cross", "blue", "big")), "above")
    rng = random.Random(2)
    assert {partial_caption(scene, rng) for _ in range(100)} == {
        "маленькая красная полоса над большим синим крестом на бежевом фоне",
        "маленькая красная полоса над большим синим крестом",
        "маленькая полоса над большим крестом на бежевом фоне",
        "маленькая полоса над большим крестом",
    }


def test_english_variants_drop_articles_and_add_capitals_and_full_stops() -> None:
    rng = random.Random(3)
    variants = {english_variant(SENTENCES[1][0], rng) for _ in range(400)}
    plain = {
        "a black square on a white background",
        "black square on white background",
        "a black square on white",
        "black square on white",
    }
    capitals = {text[0].upper() + text[1:] for text in plain}
    assert variants == {text + end for text in plain | capitals for end in ("", ".")}


def test_english_variants_use_all_synonyms() -> None:
    rng = random.Random(5)
    texts = " ".join(english_variant(SENTENCES[4][0], rng).lower() for _ in range(400))
    assert set(re.findall(r"\w+", texts)) == {
        *("a", "on", "background", "above", "over", "small", "little", "tiny", "big", "large"),
        *("green", "violet", "purple", "grey", "gray", "cross", "bar", "stripe"),
    }


def test_articles_match_their_words() -> None:
    rng = random.Random(4)
    for scene in scenes():
        for article, word in re.findall(r"\b(an?) (\w+)", english_variant(scene, rng).lower()):
            assert article == ("an" if word[0] in "aeiou" else "a")
