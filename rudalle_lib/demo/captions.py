"""Captions of Suprematist scenes, in Russian with gender and case, and in English to translate.

    большой синий круг слева от жёлтого треугольника на чёрном фоне
    a big blue circle to the left of a yellow triangle on a black background

A figure of medium size has no size word. `russian_caption` and `english_caption` return the
canonical text. `caption_variant` and `english_variant` return other ways to write the same thing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rudalle_lib.demo.scenes import Figure, Scene

Choose = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class _Noun:
    """A masculine or feminine noun in the three cases that captions need."""

    feminine: bool
    nominative: str
    genitive: str
    instrumental: str


NOUNS = {
    "square": _Noun(False, "квадрат", "квадрата", "квадратом"),
    "circle": _Noun(False, "круг", "круга", "кругом"),
    "triangle": _Noun(False, "треугольник", "треугольника", "треугольником"),
    "cross": _Noun(False, "крест", "креста", "крестом"),
    "bar": _Noun(True, "полоса", "полосы", "полосой"),
    "star": _Noun(True, "звезда", "звезды", "звездой"),
}
"""Nouns by shape. The demo models do not know stars."""

ADJECTIVES = {
    "red": "красн",
    "blue": "син",
    "yellow": "жёлт",
    "green": "зелён",
    "orange": "оранжев",
    "violet": "фиолетов",
    "black": "чёрн",
    "white": "бел",
    "beige": "бежев",
    "grey": "сер",
    "small": "маленьк",
    "big": "больш",
    "large": "крупн",
    "little": "небольш",
}
"""Stems of adjectives. The endings depend on gender, case and the class of the stem."""

ENDINGS = {
    "hard": ("ый", "ая", "ого", "ой", "ым", "ой", "ом"),
    "soft": ("ий", "яя", "его", "ей", "им", "ей", "ем"),
    "velar": ("ий", "ая", "ого", "ой", "им", "ой", "ом"),
    "stressed": ("ой", "ая", "ого", "ой", "им", "ой", "ом"),
}
"""Endings by class of stem: nominative, genitive and instrumental (each masculine and feminine),
and the masculine prepositional."""

RELATIONS_RU = {
    "left_of": ("слева от", "genitive"),
    "right_of": ("справа от", "genitive"),
    "above": ("над", "instrumental"),
    "below": ("под", "instrumental"),
}
"""Russian words for each relation, and the case that they govern."""

RELATIONS_EN = {
    "left_of": ("to the left of", "left of"),
    "right_of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""English words for each relation, the canonical ones first."""

SYNONYMS_EN = {
    "big": ("big", "large"),
    "small": ("small", "little", "tiny"),
    "violet": ("violet", "purple"),
    "grey": ("grey", "gray"),
    "bar": ("bar", "stripe"),
}
"""English synonyms, the canonical word first."""

_CASES = {"nominative": 0, "genitive": 2, "instrumental": 4}


def russian_caption(scene: Scene) -> str:
    """Return the canonical Russian caption of a scene."""
    return f"{_figures_ru(scene, {})} {background_ru(scene.background)}"


def caption_variant(scene: Scene, rng: random.Random) -> str:
    """Return a Russian caption with random variations: size words, word order, е instead of ё."""
    words = {}
    if rng.random() < 0.3:
        words = {"big": "large", "small": "little"}
    figures, background = _figures_ru(scene, words), background_ru(scene.background)
    text = f"{background} {figures}" if rng.random() < 0.3 else f"{figures} {background}"
    return text.replace("ё", "е") if rng.random() < 0.4 else text


def partial_caption(scene: Scene, rng: random.Random) -> str:
    """Return a Russian caption, possibly without the colours, the background or both.

    A decoder that sees such captions learns the meaning of each word on its own. Size words stay,
    because a caption without one means a figure of medium size.
    """
    figures = _figures_ru(scene, {}, colour=rng.random() < 0.4)
    return figures if rng.random() < 0.5 else f"{figures} {background_ru(scene.background)}"


def english_caption(scene: Scene) -> str:
    """Return the canonical English caption of a scene."""
    return _english(scene, lambda options: options[0])


def english_variant(scene: Scene, rng: random.Random) -> str:
    """Return an English caption with random synonyms, articles, capitals and full stop."""
    text = _english(scene, rng.choice)
    if rng.random() < 0.3:
        text = " ".join(word for word in text.split() if word not in ("a", "an"))
    if rng.random() < 0.2:
        text = text.replace(" on a ", " on ").replace(" background", "")
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.2 else text


def background_ru(background: str) -> str:
    """Return the Russian phrase for a background, such as 'на белом фоне'."""
    return f"на {_inflect(background, 6)} фоне"


def adjective_ru(word: str, feminine: bool, case: str) -> str:
    """Inflect an adjective for gender and case, as in 'синяя', 'жёлтого', 'большим'.

    Args:
        word: a key of `ADJECTIVES`.
        feminine: whether the noun is feminine.
        case: "nominative", "genitive" or "instrumental".
    """
    return _inflect(word, _CASES[case] + int(feminine))


def _inflect(word: str, ending: int) -> str:
    return ADJECTIVES[word] + ENDINGS[_stem_class(word)][ending]


def _stem_class(word: str) -> str:
    if word == "blue":
        return "soft"
    if word == "small":
        return "velar"
    return "stressed" if word in ("big", "little") else "hard"


def _figures_ru(scene: Scene, words: dict[str, str], colour: bool = True) -> str:
    first = _figure_ru(scene.figures[0], "nominative", words, colour)
    if scene.relation is None:
        return first
    relation, case = RELATIONS_RU[scene.relation]
    return f"{first} {relation} {_figure_ru(scene.figures[1], case, words, colour)}"


def _figure_ru(figure: Figure, case: str, words: dict[str, str], colour: bool) -> str:
    noun = NOUNS[figure.shape]
    names = [] if figure.size == "medium" else [words.get(figure.size, figure.size)]
    if colour:
        names.append(figure.colour)
    adjectives = [adjective_ru(name, noun.feminine, case) for name in names]
    return " ".join((*adjectives, getattr(noun, case)))


def _english(scene: Scene, choose: Choose) -> str:
    parts = [_figure_en(scene.figures[0], choose)]
    if scene.relation is not None:
        parts += [choose(RELATIONS_EN[scene.relation]), _figure_en(scene.figures[1], choose)]
    background = choose(SYNONYMS_EN.get(scene.background, (scene.background,)))
    return " ".join((*parts, "on", _article(background), background, "background"))


def _figure_en(figure: Figure, choose: Choose) -> str:
    names = [figure.colour, figure.shape]
    if figure.size != "medium":
        names.insert(0, figure.size)
    words = [choose(SYNONYMS_EN.get(name, (name,))) for name in names]
    return " ".join((_article(words[0]), *words))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
