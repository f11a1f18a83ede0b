"""How many images a prompt needs: adaptive best-of-N.

With `generate.until_accepted` a prompt gets `generate.images` more in every round, numbered on from
those of the last one, until `generate.until_accepted` of them are accepted or it has
`generate.max_images`. The rule looks at the images of this prompt alone, and at those of one round
after the other. So the result is the same for every shard size, order and worker, and whether the
images were drawn in this run or, in any number, in an earlier one. A budget for the whole run could
not be: what one prompt gets would depend on which others were drawn first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from rudalle_lib.config.sections import GenerateConfig, ScoreConfig
from rudalle_lib.generation.image_counts import images_of
from rudalle_lib.images.selection import contents_of, kept
from rudalle_lib.schema.records import Prompt, ScoreRecord, TokensRecord


def needed_images(
    prompts: Iterable[Prompt],
    section: GenerateConfig,
    selection: ScoreConfig,
    tokens: Sequence[TokensRecord],
    scores: Sequence[ScoreRecord],
) -> dict[str, int]:
    """How many images each prompt needs, as far as those that are drawn show.

    Args:
        prompts: with their overrides.
        section: size of a round, and when a prompt has enough.
        selection: decides which images are accepted.
        tokens: all images that are drawn; of each prompt the first few.
        scores: of these images; one without a score is not accepted.

    Returns:
        A number by prompt id. One that is larger than that of the images drawn is the end of the
        next round: draw up to it and ask again. Otherwise the prompt has enough.
    """
    drawn: defaultdict[str, list[TokensRecord]] = defaultdict(list)
    for row in tokens:
        drawn[row.prompt_id].append(row)
    by_id = {row.image_id: row for row in scores}
    return {
        prompt.prompt_id: _needed(prompt, section, selection, drawn[prompt.prompt_id], by_id)
        for prompt in prompts
    }


def _needed(
    prompt: Prompt,
    section: GenerateConfig,
    selection: ScoreConfig,
    drawn: Sequence[TokensRecord],
    scores: Mapping[str, ScoreRecord],
) -> int:
    a_round = needed = images_of(prompt, section)
    if section.until_accepted is None:
        return needed
    contents = contents_of(drawn)
    while needed <= len(drawn) and needed < section.max_images:
        ids = [row.image_id for row in drawn if row.replica < needed]
        judged = [scores[image_id] for image_id in ids if image_id in scores]
        if len(kept(judged, selection, contents)) >= section.until_accepted:
            break
        needed = min(needed + a_round, section.max_images)
    return needed
