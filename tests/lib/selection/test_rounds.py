"""The rule of adaptive best-of-N: the same numbers, in whatever portions the images are drawn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.config.sections import GenerateConfig, ScoreConfig
from rudalle_lib.schema.records import Overrides, Prompt, ScoreRecord, TokensRecord, image_id
from rudalle_lib.selection.rounds import needed_images

PROMPT = Prompt("p", "x")
SELECTION = ScoreConfig(min_score=0.5)


def rounds(images: int = 2, until_accepted: int = 2, max_images: int = 8) -> GenerateConfig:
    return GenerateConfig(images=images, until_accepted=until_accepted, max_images=max_images)


def image(prompt_id: str, replica: int, score: float | None, shows: int | None = None) -> tuple[
    TokensRecord, list[ScoreRecord]
]:  # fmt: skip
    """An image; those that show the same have the same tokens; one without a score is broken."""
    name, shown = image_id(prompt_id, replica), [replica if shows is None else shows]
    tokens = TokensRecord(name, prompt_id, replica, 0, shown, -1.0, 2.0, 1.0, 0, 0.9, False)
    return tokens, [] if score is None else [ScoreRecord(name, prompt_id, score, 1)]


def needed(
    section: GenerateConfig, *scores: float | None, selection: ScoreConfig = SELECTION,
    prompt: Prompt = PROMPT, shows: int | None = None,
) -> int:  # fmt: skip
    """The number that a prompt needs if its images have these scores."""
    rows = [image("p", replica, score, shows) for replica, score in enumerate(scores)]
    tokens, judged = [row for row, _ in rows], [one for _, found in rows for one in found]
    return needed_images([prompt], section, selection, tokens, judged)["p"]


def test_without_rounds_a_prompt_needs_what_the_settings_say() -> None:
    assert needed(GenerateConfig(images=5)) == 5
    own = Prompt("p", "x", overrides=Overrides(images=3))
    assert needed(GenerateConfig(images=5), prompt=own) == 3


def test_a_prompt_stops_when_enough_are_accepted() -> None:
    assert needed(rounds()) == 2
    assert needed(rounds(), 0.9, 0.9) == 2
    assert needed(rounds(), 0.9, 0.1) == 4
    assert needed(rounds(), 0.9, 0.1, 0.1, 0.9) == 4
    assert needed(rounds(), 0.1, 0.1, 0.1, 0.1) == 6


def test_a_prompt_never_gets_more_than_the_most() -> None:
    assert needed(rounds(max_images=5), 0.1, 0.1, 0.1, 0.1) == 5
    assert needed(rounds(max_images=5), *[0.1] * 5) == 5
    own = Prompt("p", "x", overrides=Overrides(images=100))
    assert needed(rounds(), prompt=own) == 8


def test_an_image_that_is_the_same_or_broken_is_not_accepted() -> None:
    assert needed(rounds(), 0.9, 0.9, shows=1) == 4
    assert needed(rounds(), 0.9, None) == 4


def test_more_than_enough_images_of_an_earlier_run_change_nothing() -> None:
    assert needed(rounds(), 0.1, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9) == 4


def test_prompts_do_not_depend_on_each_other() -> None:
    section = rounds()
    easy = [image("easy", replica, 0.9) for replica in range(2)]
    hard = [image("hard", replica, 0.1) for replica in range(4)]
    rows = [*easy, *hard]
    found = needed_images(
        [Prompt("easy", "x"), Prompt("hard", "y"), Prompt("new", "z")], section, SELECTION,
        [row for row, _ in rows], [one for _, judged in rows for one in judged],
    )  # fmt: skip
    assert found == {"easy": 2, "hard": 6, "new": 2}


@given(
    scores=st.lists(st.sampled_from([0.1, 0.4, 0.6, 0.9]), min_size=12, max_size=12),
    images=st.integers(1, 5),
    until=st.integers(1, 4),
    most=st.integers(5, 12),
    portions=st.lists(st.integers(1, 12), max_size=5),
)
def test_the_number_is_the_same_in_whatever_portions_images_are_drawn(
    scores: list[float], images: int, until: int, most: int, portions: list[int]
) -> None:
    section = rounds(images, until, most)

    def finally_needed(drawn: int) -> int:
        while (number := needed(section, *scores[:drawn])) > drawn:
            drawn = number
        return number

    number = finally_needed(0)
    assert all(finally_needed(portion) == number for portion in portions)
    accepted = [sum(score >= 0.5 for score in scores[:end]) for end in range(most + 1)]
    assert number == most or accepted[number] >= until
    before = number - images
    assert before <= 0 or number == most or accepted[before] < until
