"""Pictures larger than the decoder's grid, wide or tall, drawn in overlapping windows.

The decoder only knows its own grid, so a canvas is drawn window by window, in reading order. Each
window begins half a grid after the one before; its part that is drawn already is given, and it
draws the rest, seeing that part as the beginning of its own picture. Noise is keyed by the place
on the canvas, so no two places share it, and a canvas of the grid's own size is drawn as ever.

Source: shonenkov-AI/rudalle-aspect-ratio draws wide pictures so. It reads the given half again from
decoded pixels, where here the tokens themselves are kept; and its tall pictures go row by row, each
on a prefix of the rows above it, which is many times the work: here they are windows too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rudalle_lib.config import TOKEN_PIXELS, GenerateConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.records import Overrides
from rudalle_lib.sampling import DRAW, Progress, SamplingSettings, generate_tokens

#: The largest canvas, in grids: 16 of the published models' are 1024 x 1024 pixels.
MAX_GRIDS = 16


@dataclass(frozen=True, slots=True)
class Canvas:
    """Size of a picture in image tokens."""

    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """Image tokens in all."""
        return self.rows * self.columns


@dataclass(frozen=True)
class CanvasRequest:
    """One image to draw.

    Args:
        prompt_index: its prompt.
        seed: its seed.
        settings: how its tokens are chosen.
        canvas: its size.
        given: int64 [rows, columns], tokens that are not drawn but as given, `DRAW` elsewhere;
            None draws all.
    """

    prompt_index: int
    seed: int
    settings: SamplingSettings
    canvas: Canvas
    given: Tensor | None = None


@dataclass(frozen=True)
class DrawnCanvas:
    """One drawn image; scores as in `sampling.GeneratedTokens`, over the whole canvas.

    Args:
        tokens: int64 [rows, columns].
        logprob: mean log-probability of a token, each in the window that drew it first.
        ppl: mean of 1 / probability over all tokens but the first.
    """

    tokens: Tensor
    logprob: float
    ppl: float


def choose_canvas(section: GenerateConfig, own: Overrides, grid: Canvas) -> Canvas:
    """The size that a prompt asks for, else the run, else the decoder's own.

    Raises:
        SettingsError: smaller than the grid, too large, or no whole number of tokens.
    """
    width = section.width if own.width is None else own.width
    height = section.height if own.height is None else own.height
    canvas = Canvas(
        _tokens("height", height, grid.rows, section.size_unit),
        _tokens("width", width, grid.columns, section.size_unit),
    )
    if canvas.cells > MAX_GRIDS * grid.cells:
        raise SettingsError(
            f"width and height: expected at most {MAX_GRIDS * grid.cells:,} image tokens in all, "
            f"found {canvas.columns} x {canvas.rows}"
        )
    return canvas


def _tokens(name: str, size: int | None, least: int, unit: str) -> int:
    if size is None:
        return least
    step = TOKEN_PIXELS if unit == "pixels" else 1
    if size % step or size < least * step:
        raise SettingsError(
            f"{name}: expected at least {least * step} {unit}, as the decoder draws"
            f"{f', in steps of {step}' if step > 1 else ''}, found {size}"
        )
    return size // step


def window_starts(size: int, window: int) -> list[int]:
    """Where windows begin along one side: half a window apart, the last one at the very end."""
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
    progress: Progress | None = None,
    *,
    empty_text: Tensor | None = None,
) -> list[DrawnCanvas]:
    """Draw images of any sizes, in order; all first windows, then all second ones, and so on.

    An image depends on its request only, not on its company.

    Args:
        model, text_ids, batch_size, progress, empty_text: as in `sampling.generate_tokens`; the
            progress counts the tokens of all windows.
        requests: the images; those of a prompt should be neighbours.

    Raises:
        SettingsError, RudalleError: as `sampling.generate_tokens`.
    """
    grid = Canvas(model.config.image_height, model.config.image_width)
    drawings = [_Drawing(request, grid) for request in requests]
    total = sum(len(drawing.windows) for drawing in drawings) * grid.cells
    done = 0
    for number in range(max((len(drawing.windows) for drawing in drawings), default=1)):
        current = [drawing for drawing in drawings if number < len(drawing.windows)]

        def report(drawn: int, _: int, before: int = done) -> None:
            if progress is not None:
                progress(before + drawn, total)

        _draw_windows(model, text_ids, current, number, batch_size, report, empty_text)
        done += len(current) * grid.cells
    return [drawing.result() for drawing in drawings]


class _Drawing:
    """An image on its way."""

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
        """Take a window: int64 and float32 [H * W]; what was there before keeps its score."""
        window = self.windows[number]
        self.tokens[window] = tokens.view_as(self.tokens[window])
        before = self._logprobs[window]
        self._logprobs[window] = torch.where(before.isnan(), logprobs.view_as(before), before)

    def result(self) -> DrawnCanvas:
        logprobs = self._logprobs.flatten()
        ppl = torch.exp(-logprobs[1:]).mean()
        return DrawnCanvas(self.tokens, float(logprobs.mean()), float(ppl))


def _draw_windows(
    model: Dalle,
    text_ids: Tensor,
    drawings: Sequence[_Drawing],
    number: int,
    batch_size: int,
    report: Progress,
    empty_text: Tensor | None,
) -> None:
    """Draw the window of this number of every image."""
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
    )
    for row, drawing in enumerate(drawings):
        drawing.add(number, drawn.tokens[row], drawn.token_logprobs[row])


def _stack(pieces: Iterator[Tensor]) -> Tensor | None:
    """[N, H * W]; None of no pieces."""
    rows = [piece.flatten() for piece in pieces]
    return torch.stack(rows) if rows else None
