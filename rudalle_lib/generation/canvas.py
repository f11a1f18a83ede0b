"""Images that are wider or taller than the decoder's grid, drawn in overlapping windows.

The decoder knows only its own grid, so a canvas is drawn window by window, in reading order. Each
window starts half a grid after the previous one. The part of it that exists already is given, and
the decoder draws the rest as the continuation of that part. Noise is keyed by the position on the
canvas, so that no two positions share it. A canvas of the size of the grid is a single window, with
the same result as `sampling.generate_tokens`.

Source: shonenkov-AI/rudalle-aspect-ratio draws wide images this way. It encodes the given half
again from decoded pixels, while here the tokens themselves are kept. Its tall images are drawn row
by row, each row on a prefix of the rows above it, which is many times the work; here tall images
use windows too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rudalle_lib.config.sections import TOKEN_PIXELS, GenerateConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.generation.sampling import DRAW, SamplingSettings, generate_tokens
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.runtime.batching import OnProgress, no_progress
from rudalle_lib.schema.records import Overrides

MAX_GRIDS = 16
"""The largest canvas, in grids of the decoder: 1024 x 1024 pixels for the published models."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """Size of an image in image tokens."""

    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """The number of image tokens."""
        return self.rows * self.columns


@dataclass(frozen=True)
class CanvasRequest:
    """One image to draw.

    Args:
        prompt_index: its prompt.
        seed: its seed.
        settings: how its tokens are sampled.
        canvas: its size.
        given: int64 [rows, columns], tokens that are given, `DRAW` elsewhere; None draws all.
    """

    prompt_index: int
    seed: int
    settings: SamplingSettings
    canvas: Canvas
    given: Tensor | None = None


@dataclass(frozen=True)
class DrawnCanvas:
    """One drawn image, with the scores of `sampling.GeneratedTokens` over the whole canvas.

    Attributes:
        tokens: int64 [rows, columns].
        logprob: mean log-probability of the tokens, each in the first window that contains it.
        ppl: mean of 1 / probability over all tokens but the first.
    """

    tokens: Tensor
    logprob: float
    ppl: float


def choose_canvas(section: GenerateConfig, overrides: Overrides, grid: Canvas) -> Canvas:
    """The size of an image: that of its prompt, otherwise of the run, otherwise of the decoder.

    Args:
        section: settings of the run.
        overrides: settings of the prompt.
        grid: the size that the decoder was trained with.

    Raises:
        SettingsError: the size is smaller than the grid, too large, or not a whole number of
            tokens.
    """
    width = section.width if overrides.width is None else overrides.width
    height = section.height if overrides.height is None else overrides.height
    canvas = Canvas(
        _tokens("height", height, grid.rows, section.size_unit),
        _tokens("width", width, grid.columns, section.size_unit),
    )
    if canvas.cells > MAX_GRIDS * grid.cells:
        raise SettingsError(
            f"width and height: expected at most {MAX_GRIDS * grid.cells:,} image tokens in total, "
            f"found {canvas.columns} x {canvas.rows}"
        )
    return canvas


def _tokens(name: str, size: int | None, min_tokens: int, unit: str) -> int:
    if size is None:
        return min_tokens
    step = TOKEN_PIXELS if unit == "pixels" else 1
    if size % step or size < min_tokens * step:
        raise SettingsError(
            f"{name}: expected at least {min_tokens * step} {unit}, the size of the decoder's grid"
            f"{f', in steps of {step}' if step > 1 else ''}, found {size}"
        )
    return size // step


def window_starts(size: int, window: int) -> list[int]:
    """Starts of the windows along one side: half a window apart; the last window ends the side."""
    steps = range(0, size - window, max(window // 2, 1))
    return [*steps, size - window]


def windows(canvas: Canvas, grid: Canvas) -> list[tuple[slice, slice]]:
    """The rows and columns of each window of a canvas, in the order of drawing."""
    return [
        (slice(top, top + grid.rows), slice(left, left + grid.columns))
        for top in window_starts(canvas.rows, grid.rows)
        for left in window_starts(canvas.columns, grid.columns)
    ]


def generate_canvases(
    model: Dalle,
    text_ids: Tensor,
    requests: Sequence[CanvasRequest],
    batch_size: int,
    on_progress: OnProgress = no_progress,
    *,
    empty_text: Tensor | None = None,
    batch_rows: int | None = None,
) -> list[DrawnCanvas]:
    """Draw images of any sizes: the first windows of all images, then the second ones, and so on.

    An image depends only on its request, not on the other images.

    Args:
        model: the decoder, as in `sampling.generate_tokens`.
        text_ids: int64 [P, text_length], text ids of the prompts.
        requests: the images; those of one prompt should be adjacent.
        batch_size: windows per batch.
        on_progress: called after each step with the tokens drawn so far, and those of all windows.
        empty_text: int64 [text_length], required for guidance.
        batch_rows: rows of the decoder, as in `sampling.generate_tokens`.

    Returns:
        The images, in the order of the requests.

    Raises:
        SettingsError: see `sampling.generate_tokens`.
        OutOfMemoryError: there is not enough memory for a single window.
        RudalleError: the output of the network is NaN or infinite.
    """
    grid = Canvas(model.config.image_height, model.config.image_width)
    drawings = [_Drawing(request, grid) for request in requests]
    total = sum(len(drawing.windows) for drawing in drawings) * grid.cells
    done = 0
    for number in range(max((len(drawing.windows) for drawing in drawings), default=1)):
        current = [drawing for drawing in drawings if number < len(drawing.windows)]

        def report(drawn: int, _: int, before: int = done) -> None:
            on_progress(before + drawn, total)

        _draw_windows(model, text_ids, current, number, batch_size, report, empty_text, batch_rows)
        done += len(current) * grid.cells
    return [drawing.result() for drawing in drawings]


class _Drawing:
    """An image while it is being drawn."""

    def __init__(self, request: CanvasRequest, grid: Canvas) -> None:
        shape = (request.canvas.rows, request.canvas.columns)
        self.request = request
        self.windows = windows(request.canvas, grid)
        self.places = torch.arange(request.canvas.cells).view(shape)
        self.tokens = torch.full(shape, DRAW)
        if request.given is not None:
            self.tokens.copy_(request.given)
        self._logprobs = torch.full(shape, torch.nan)

    def add(self, number: int, tokens: Tensor, logprobs: Tensor) -> None:
        """Add a window, int64 and float32 [H * W]; tokens that existed before keep their score."""
        window = self.windows[number]
        self.tokens[window] = tokens.view_as(self.tokens[window])
        existing = self._logprobs[window]
        self._logprobs[window] = torch.where(existing.isnan(), logprobs.view_as(existing), existing)

    def result(self) -> DrawnCanvas:
        """The finished image."""
        logprobs = self._logprobs.flatten()
        ppl = torch.exp(-logprobs[1:]).mean()
        return DrawnCanvas(self.tokens, float(logprobs.mean()), float(ppl))


def _draw_windows(
    model: Dalle,
    text_ids: Tensor,
    drawings: Sequence[_Drawing],
    number: int,
    batch_size: int,
    report: OnProgress,
    empty_text: Tensor | None,
    batch_rows: int | None,
) -> None:
    """Draw one window per image: that of the given number."""
    requests = [drawing.request for drawing in drawings]
    given = _stack(drawing.tokens[drawing.windows[number]] for drawing in drawings)
    places = _stack(drawing.places[drawing.windows[number]] for drawing in drawings)
    drawn = generate_tokens(
        model,
        text_ids,
        torch.tensor([request.prompt_index for request in requests], dtype=torch.int64),
        torch.tensor([request.seed for request in requests], dtype=torch.int64),
        [request.settings for request in requests],
        batch_size,
        report,
        empty_text=empty_text,
        given=given,
        places=places,
        batch_rows=batch_rows,
    )
    for row, drawing in enumerate(drawings):
        drawing.add(number, drawn.tokens[row], drawn.token_logprobs[row])


def _stack(pieces: Iterator[Tensor]) -> Tensor | None:
    """[N, H * W]; None if there are no pieces."""
    rows = [piece.flatten() for piece in pieces]
    return torch.stack(rows) if rows else None
