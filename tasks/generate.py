"""Generate: draw the image tokens of all candidates of a shard."""

from __future__ import annotations

from prefect import task

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.generation.image_counts import images_of
from rudalle_lib.pipeline.artifacts import find_artifact
from rudalle_lib.schema.records import StageArtifact
from rudalle_lib.storage.storage import Storage
from tasks.candidates import STAGE, Candidates
from tasks.rounds import Judges, draw_in_rounds
from tasks.runtime.events import notice, reporter
from tasks.runtime.job import Job
from tasks.runtime.options import OPTIONS, run_name


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def generate(
    section: GenerateConfig,
    job: Job,
    translated: StageArtifact,
    fingerprint: str,
    run_seed: int,
    judges: Judges | None = None,
    min_confidence: float | None = None,
) -> StageArtifact:
    """Draw the candidates of all translated prompts; one `TokensRecord` per candidate, in order.

    A prompt that cannot be drawn (too long, or its canvas or image prompt does not fit), or whose
    translation is less certain than `min_confidence`, has no candidates and becomes a reject, with
    its reason in the artifact's metadata. Candidates that an earlier run has drawn are kept, unless
    their prompts were reopened. With `judges`, prompts get more candidates in rounds until enough
    are accepted.
    """
    done = find_artifact(Storage(job.output), STAGE, job.shard, fingerprint, notice, job.term)
    if done is not None:
        return done
    candidates = Candidates(section, job, translated, fingerprint, run_seed, min_confidence)
    if judges is not None:
        return candidates.write(draw_in_rounds(candidates, section, job, translated, judges))
    wanted = {prompt.prompt_id: images_of(prompt, section) for prompt in candidates.prompts}
    candidates.draw(wanted, reporter(STAGE, job.shard.index))
    return candidates.write(wanted)
