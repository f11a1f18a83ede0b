"""An image's seed depends on its identity, all of it, and never changes between releases."""

from rudalle_lib.seeds import image_seed


def test_every_part_of_the_identity_counts() -> None:
    seeds = {
        image_seed(run, prompt, replica)
        for run in (0, 1, -1, 2**70)
        for prompt in ("a", "b", "a1", "ё", "")
        for replica in range(50)
    }
    assert len(seeds) == 4 * 5 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_what_they_have_always_been() -> None:
    assert image_seed(0, "black-square", 0) == 6428626394029193717
    assert image_seed(7, "чёрный-квадрат", 3) == 7404746596704219546
