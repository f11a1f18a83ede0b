"""Prefect tasks: one thin file per pipeline stage.

A stage's task reads artifacts of earlier stages, calls the function of `rudalle_lib` that does the
work, and writes its own artifact. If that artifact exists with the expected fingerprint, the task
does nothing. All of them take:

- `section`: the stage's section of the configuration,
- `job`: the shard, the output, and the devices and weights to use,
- artifacts of earlier stages, each under a name such as `decoded`,
- `fingerprint`: that of the artifact to write (`rudalle_lib.pipeline.stages.fingerprints`).
"""

from __future__ import annotations

from tasks.runtime.environment import prepare

prepare()
