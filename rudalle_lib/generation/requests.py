"""From prompts to what the decoder is asked for: text ids, canvas and image prompt of each.

A prompt that cannot be drawn is rejected with a reason, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.errors import ImageError, SettingsError, StorageError, TransientError
from rudalle_lib.generation.candidates import Candidate
from rudalle_lib.generation.canvas import Canvas, CanvasRequest, choose_canvas
from rudalle_lib.models.dalle import DalleConfig
from rudalle_lib.schema.borders import Borders
from rudalle_lib.schema.records import Overrides, Prompt, Reject
from rudalle_lib.text.tokenizer import EncodedText, Tokenizer

EncodeImagePrompt = Callable[[str, Borders, Canvas], Tensor]
"""From the URI, borders and canvas of an image prompt to its tokens, int64 [rows, columns]; see
`generation.image_prompts`."""


@dataclass
class Prepared:
    """Prompts that are ready to be drawn, and those that cannot be, by prompt id.

    Attributes:
        texts, canvases: of the prompts that can be drawn, in order.
        given: tokens of those with an image prompt, int64 [rows, columns].
        rejects: why the others cannot be drawn.
    """

    texts: dict[str, EncodedText] = field(default_factory=dict)
    canvases: dict[str, Canvas] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    rejects: dict[str, Reject] = field(default_factory=dict)

    def requests(self, candidates: Sequence[Candidate]) -> list[CanvasRequest]:
        """One request per candidate of the prompts that can be drawn."""
        positions = {prompt_id: index for index, prompt_id in enumerate(self.texts)}
        return [
            CanvasRequest(
                positions[candidate.prompt_id],
                candidate.seed,
                candidate.settings,
                self.canvases[candidate.prompt_id],
                self.given.get(candidate.prompt_id),
            )
            for candidate in candidates
        ]


class _Rejected(Exception):
    """A prompt that cannot be drawn."""

    def __init__(self, reject: Reject) -> None:
        super().__init__(reject.detail)
        self.reject = reject


def prepare(
    prompts: Sequence[Prompt],
    texts: Mapping[str, str],
    section: GenerateConfig,
    tokenizer: Tokenizer,
    architecture: DalleConfig,
    encode_image_prompt: EncodeImagePrompt,
) -> Prepared:
    """Get prompts ready for the decoder.

    Args:
        prompts: with their overrides.
        texts: what the decoder is to read, by prompt id; prompts without a text are skipped.
        section: settings of the run.
        tokenizer: the decoder's.
        architecture: the decoder's.
        encode_image_prompt: reads and encodes image prompts.

    Raises:
        SettingsError: a canvas of the run, not of a row, that the decoder cannot draw.
        TransientError: an image prompt that may be readable later.
    """
    grid = Canvas(architecture.image_height, architecture.image_width)
    choose_canvas(section, Overrides(), grid)
    ready = Prepared()
    for prompt in prompts:
        if prompt.prompt_id not in texts:
            continue
        text = tokenizer.encode_text(texts[prompt.prompt_id], architecture.text_length)
        try:
            canvas, given = _canvas_and_tokens(prompt, text, section, grid, encode_image_prompt)
        except _Rejected as rejected:
            ready.rejects[prompt.prompt_id] = rejected.reject
            continue
        ready.texts[prompt.prompt_id] = text
        ready.canvases[prompt.prompt_id] = canvas
        if given is not None:
            ready.given[prompt.prompt_id] = given
    return ready


def _canvas_and_tokens(
    prompt: Prompt,
    text: EncodedText,
    section: GenerateConfig,
    grid: Canvas,
    encode_image_prompt: EncodeImagePrompt,
) -> tuple[Canvas, Tensor | None]:
    if text.truncated and not section.allow_truncation:
        detail = "longer than the decoder reads, and generate.allow_truncation is off"
        raise _Rejected(Reject("too_long", detail))
    overrides = prompt.overrides
    try:
        canvas = choose_canvas(section, overrides, grid)
    except SettingsError as error:
        raise _Rejected(Reject("bad_override", str(error))) from None
    if overrides.image_prompt is None or overrides.image_prompt_borders is None:
        return canvas, None
    try:
        borders = Borders.parse(overrides.image_prompt_borders)
        return canvas, encode_image_prompt(overrides.image_prompt, borders, canvas)
    except TransientError as error:
        raise TransientError(
            f"{error} That is the image prompt of {prompt}; run again once it can be "
            "read, or take it out of the table."
        ) from None
    except (ImageError, StorageError, ValueError) as error:
        raise _Rejected(Reject("bad_image_prompt", str(error))) from None
