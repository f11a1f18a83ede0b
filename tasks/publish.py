"""Publish: the dataset of a shard, and the manifest that makes it exist."""

from __future__ import annotations

from functools import partial

from prefect import task

from rudalle_lib.config import ScoreConfig
from rudalle_lib.config_publish import PublishConfig
from rudalle_lib.lease import check
from rudalle_lib.publishing import publish_shard
from rudalle_lib.records import ShardManifest, StageArtifact
from rudalle_lib.storage import Storage
from tasks.job import Job
from tasks.options import OPTIONS, run_name

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
) -> ShardManifest:
    """Write images, metadata and rejects of a shard, its manifest last."""
    storage = Storage(job.output)
    return publish_shard(
        storage,
        section,
        selection,
        models,
        job.shard,
        artifacts,
        fingerprint,
        config_digest,
        (lambda: None) if job.lease is None else partial(check, storage, job.lease),
    )
