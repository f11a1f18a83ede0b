"""Publish: write the dataset of a shard, then the manifest that marks the shard finished."""

from __future__ import annotations

from functools import partial

from prefect import task

from rudalle_lib.config.sections import PublishConfig, ScoreConfig
from rudalle_lib.dataset.lease import check
from rudalle_lib.images.file_threads import files_of_machine
from rudalle_lib.pipeline.publish import publish_shard
from rudalle_lib.schema.records import RejectRecord, ShardManifest, StageArtifact
from rudalle_lib.selection.choices import NO_CHOICE, Choice
from rudalle_lib.storage.storage import Storage
from tasks.runtime.device_locks import finish_on_cpu
from tasks.runtime.job import Job
from tasks.runtime.options import OPTIONS, run_name
from tasks.runtime.run_logs import log_rejects

STAGE = "publish"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def publish(
    section: PublishConfig,
    selection: ScoreConfig,
    job: Job,
    models: dict[str, str],
    artifacts: dict[str, StageArtifact],
    fingerprint: str,
    config_digest: str,
    weights: dict[str, str] | None = None,
    choice: Choice = NO_CHOICE,
) -> ShardManifest:
    """Write the images, metadata and rejects of a shard, and last its manifest.

    Args:
        section: format of the dataset.
        selection: decides which images are kept.
        job: the shard; its lease must still be held.
        models: registry name by stage, of the stages that run a model.
        artifacts: by stage.
        fingerprint: of the published shard.
        config_digest: of the run that publishes it.
        weights: digests of the weights by stage.
        choice: what else decides which images are kept.

    Raises:
        LeaseError: another run has taken over the output.
    """
    finish_on_cpu(job.shard.index)
    storage = Storage(job.output)
    rejected: list[RejectRecord] = []
    manifest = publish_shard(
        storage,
        section,
        selection,
        models,
        job.shard,
        artifacts,
        fingerprint,
        config_digest,
        job.term,
        (lambda: None) if job.lease is None else partial(check, storage, job.lease),
        files_of_machine(),
        weights,
        choice,
        rejected.append,
    )
    log_rejects(rejected)
    return manifest
