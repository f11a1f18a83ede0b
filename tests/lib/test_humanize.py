"""Numbers and names for people."""

from __future__ import annotations

import pytest

from rudalle_lib.humanize import size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (71_234, "71.2 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (4_400_000, "4.4 MB"),
        (5_000_000_000_000_000, "5,000.0 TB"),
    ],
)
def test_sizes_have_one_decimal_of_a_unit_that_fits(count: int, text: str) -> None:
    assert size(count) == text
