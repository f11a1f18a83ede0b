"""From prompts to what the decoder is asked for: text ids, canvas and image prompt of each.

A prompt that cannot be drawn is refused with a reason, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rudalle_lib.borders import Borders
from rudalle_lib.candidates import Candidate
from rudalle_lib.canvas import Canvas, CanvasRequest, choose_canvas
from rudalle_lib.config import GenerateConfig
from rudalle_lib.errors import ImageError, SettingsError, StorageError, TransientError
from rudalle_lib.models.dalle import DalleConfig
from rudalle_lib.records import Overrides, Prompt
from rudalle_lib.stages import Refused
from rudalle_lib.tokenizer import EncodedText, Tokenizer

EncodePicture = Callable[[str, Borders, Canvas], Tensor]
"""An image prompt's URI, borders and canvas to its tokens; see `image_prompts`."""


@dataclass
class Prepared:
    """What is known of prompts, by id.

    `texts` and `canvases` of those that can be drawn, in order; `given` tokens of those with an
    image prompt; why the others are `refused`.
    """

    texts: dict[str, EncodedText] = field(default_factory=dict)
    canvases: dict[str, Canvas] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)

    def requests(self, candidates: Sequence[Candidate]) -> list[CanvasRequest]:
        """What to draw for candidates of prompts that can be drawn."""
        place = {prompt_id: index for index, prompt_id in enumerate(self.texts)}
        return [
            CanvasRequest(
                place[candidate.prompt_id],
                candidate.seed,
                candidate.settings,
                self.canvases[candidate.prompt_id],
                self.given.get(candidate.prompt_id),
            )
            for candidate in candidates
        ]


class _Refusal(Exception):
    """A prompt that cannot be drawn."""


def prepare(
    prompts: Sequence[Prompt],
    texts: Mapping[str, str],
    section: GenerateConfig,
    tokenizer: Tokenizer,
    architecture: DalleConfig,
    encode_picture: EncodePicture,
) -> Prepared:
    """Get prompts ready for the decoder.

    Args:
        prompts: with their overrides.
        texts: what the decoder is to read, by prompt id; prompts without are left out in silence.
        section: settings of the run.
        tokenizer: the decoder's.
        architecture: the decoder's.
        encode_picture: reads and encodes image prompts.

    Raises:
        SettingsError: a canvas of the run, not of a row, that the decoder cannot draw.
        TransientError: an image prompt that may well be readable in a while.
    """
    grid = Canvas(architecture.image_height, architecture.image_width)
    choose_canvas(section, Overrides(), grid)
    ready = Prepared()
    for prompt in prompts:
        if prompt.prompt_id not in texts:
            continue
        text = tokenizer.encode_text(texts[prompt.prompt_id], architecture.text_length)
        try:
            canvas, given = _judge(prompt, text, section, grid, encode_picture)
        except _Refusal as refusal:
            reason, detail = refusal.args
            ready.refused[prompt.prompt_id] = reason, detail
            continue
        ready.texts[prompt.prompt_id] = text
        ready.canvases[prompt.prompt_id] = canvas
        if given is not None:
            ready.given[prompt.prompt_id] = given
    return ready


def _judge(
    prompt: Prompt,
    text: EncodedText,
    section: GenerateConfig,
    grid: Canvas,
    encode_picture: EncodePicture,
) -> tuple[Canvas, Tensor | None]:
    if text.truncated and not section.allow_truncation:
        detail = "longer than the decoder reads, and generate.allow_truncation is off"
        raise _Refusal("too_long", detail)
    own = prompt.overrides
    try:
        canvas = choose_canvas(section, own, grid)
    except SettingsError as error:
        raise _Refusal("bad_override", str(error)) from None
    if own.image_prompt is None or own.image_prompt_borders is None:
        return canvas, None
    try:
        borders = Borders.parse(own.image_prompt_borders)
        return canvas, encode_picture(own.image_prompt, borders, canvas)
    except TransientError as error:
        raise TransientError(
            f"{error} That is the image prompt of {prompt.prompt_id}; run again once it can be "
            "read, or take it out of the table."
        ) from None
    except (ImageError, StorageError, ValueError) as error:
        raise _Refusal("bad_image_prompt", str(error)) from None
