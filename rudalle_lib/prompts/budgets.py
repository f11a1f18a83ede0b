"""How much a prompt table may unpack to, in relation to its size.

Compression makes tables small, but not by any factor: a file of 300 bytes can hold a billion rows,
or one text of a megabyte ten thousand times. Readers charge what they have unpacked to a budget,
block by block, so that such a file is an error before it fills the memory or takes hours.
"""

from __future__ import annotations

from rudalle_lib.errors import PromptError

FREE_BYTES = 128 * 2**20
"""What any table may unpack to."""

MAX_RATIO = 256
"""What a table may unpack to in addition, per byte of its file.

Texts compress to a tenth. A million prompts that only differ in a number compress to a hundredth.
"""

ROW_BYTES = 512
"""What a row counts in addition to its values: about the memory of a planned or rejected row."""


CELL_BYTES = 32
"""What each value of a row counts in addition, also an empty one."""

LINE_BYTES = 64
"""What a line of a compressed text counts, also an empty one."""


class Budget:
    """What the readers of a table may still unpack."""

    def __init__(self, name: str) -> None:
        """Start with what any table may unpack to.

        Args:
            name: the table, for errors.
        """
        self._name = name
        self._allowed = FREE_BYTES
        self._used = 0
        self._cells = 0

    def feed(self, file_bytes: int) -> None:
        """Add bytes of the table's files to those that have been read."""
        self._allowed += MAX_RATIO * file_bytes

    def spend(self, unpacked_bytes: int = 0, *, rows: int = 0, columns: int = 0) -> None:
        """Charge what has been unpacked: bytes, and rows of so many columns.

        Raises:
            PromptError: it is more than the files may unpack to.
        """
        self._cells += rows * columns
        self._used += unpacked_bytes + ROW_BYTES * rows + CELL_BYTES * rows * columns
        if self._used <= self._allowed:
            return
        if CELL_BYTES * self._cells > self._used // 2:
            raise PromptError(
                f"{self._name} has too many columns for its size, most of them empty: more than "
                f"{self._cells:,} values. Put what belongs together into one column, for example "
                "as JSON."
            )
        raise PromptError(
            f"{self._name} unpacks to more than {self._allowed:,} bytes, more than {MAX_RATIO} "
            "times its size; a prompt table does not shrink that much. Write it again without the "
            "rows or values that are repeated."
        )

    def check_rows(self, rows: int) -> None:
        """Raise at once if that many rows are too many, even without values."""
        if self._used + ROW_BYTES * rows > self._allowed:
            self.spend(rows=rows)
