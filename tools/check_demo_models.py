"""Check the packaged models, and note for `rudalle_lib.weights.passed_checks` what has passed.

To be run after they were trained again, or after the checks have become stricter.

Usage: python -m tools.check_demo_models
"""

from __future__ import annotations

from flows.cli.options import PACKAGED
from rudalle_lib.checks.preflight import model_checks
from rudalle_lib.config.run import RunConfig
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.weights.passed_checks import PASSED, packaged_checks


def check_demo_models() -> str:
    """Check the models of the demo, whether they have passed before or not.

    Returns:
        What has passed, as `PASSED` has it.

    Raises:
        RudalleError: a model does not pass.
    """
    config = RunConfig.load(str(PACKAGED / "demo.yaml"))
    passed = []
    for what, check in model_checks(config, weight_digests(config)):
        check()
        passed.append(what)
    return packaged_checks(passed)


if __name__ == "__main__":
    PASSED.write_text(check_demo_models(), encoding="utf-8")
