"""The seed of an image depends on its whole identity and never changes between releases."""

from __future__ import annotations

from rudalle_lib.generation.seeds import image_seed


def test_all_parts_of_the_identity_matter() -> None:
    seeds = {
        image_seed(run, prompt, replica)
        for run in (0, 1, -1, 2**70)
        for prompt in ("a", "b", "a1", "ё", "")
        for replica in range(50)
    }
    assert len(seeds) == 4 * 5 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_never_change_between_releases() -> None:
    assert image_seed(0, "black-square", 0) == 6428626394029193717
    assert image_seed(7, "чёрный-квадрат", 3) == 7404746596704219546
