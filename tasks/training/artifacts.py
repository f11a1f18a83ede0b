"""Prefect artifacts of a training: progress, losses, and a sheet of samples.

Artifacts are only for people. If the server rejects one, a notice is printed and training goes on.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import UUID

from PIL import Image
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.escaping import markdown_text
from rudalle_lib.fine_tuning.losses import draw_losses, loss_lines
from rudalle_lib.fine_tuning.work_folder import SAMPLES
from rudalle_lib.report.run_page import data_uri
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import notice

LOSSES = "losses.svg"
"""Name of the picture in the output."""

MAX_ROWS = 500
"""The most measurements in the table: the last ones."""

MAX_SIDE = 1_200
"""The longest side of the sheet on the page, in pixels; the file in the output is larger."""


class TrainingArtifacts:
    """The artifacts of a training; used in the thread of its task."""

    def __init__(self, config: FineTuneConfig, root: Path) -> None:
        """Keep what they are about.

        Args:
            config: the fine-tuning.
            root: the folder of its output on this machine.
        """
        self._config, self._root = config, root
        self._slug = re.sub("[^a-z0-9]+", "-", config.name).strip("-")
        self._progress: UUID | None = None

    def publish(self, figures: Sequence[Mapping[str, float]]) -> None:
        """Replace the artifacts; called after each measurement, with the figures of all steps."""
        self._try(lambda: self._write_progress(figures))
        self._try(lambda: self._write_page(figures))
        self._try(lambda: self._write_table(figures))

    def _write_progress(self, figures: Sequence[Mapping[str, float]]) -> None:
        done, steps = int(figures[-1]["step"]) + 1, self._config.training.steps
        share, text = 100.0 * done / steps, f"{done:,} of {steps:,} steps."
        if self._progress is None:
            created = create_progress_artifact(
                share, key=f"{self._slug}-training", description=text
            )
            self._progress = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(self._progress, share, text)

    def _write_page(self, figures: Sequence[Mapping[str, float]]) -> None:
        svg = draw_losses(loss_lines(figures), f"{self._config.name}: losses by step")
        Storage(self._config.output).write_bytes(LOSSES, svg.encode())
        picture = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
        parts = [f"# {markdown_text(self._config.name)}", f"![losses]({picture})"]
        sheets = sorted((self._root / SAMPLES).glob("step-*.png"))
        if sheets:
            with Image.open(io.BytesIO(sheets[-1].read_bytes())) as sheet:
                sheet.thumbnail((MAX_SIDE, MAX_SIDE))
                parts.append(f"![samples]({data_uri(sheet)})")
        create_markdown_artifact(
            "\n\n".join(parts), key=f"{self._slug}-losses", description="Losses and samples."
        )

    def _write_table(self, figures: Sequence[Mapping[str, float]]) -> None:
        measured = [one for one in figures if any(name.startswith("held_out") for name in one)]
        rows = [
            {"step": int(one["step"]) + 1}
            | {name: round(value, 5) for name, value in one.items() if name != "step"}
            for one in measured[-MAX_ROWS:]
        ]
        if rows:
            create_table_artifact(
                rows, key=f"{self._slug}-measurements", description="Figures of each measurement."
            )

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # a training must not fail because of an artifact
            notice(f"Cannot publish a Prefect artifact ({type(error).__name__}: {error}).")
