"""The flow as a deployment on a Prefect server, with a configuration as its default parameters.

For teams with work pools there is `prefect.yaml` at the root of the repository.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.settings import PREFECT_UI_URL
from prefect.types.entrypoint import EntrypointType

from flows.exits import Terminated
from flows.generate_dataset import generate_dataset
from flows.watchdog import FLOW_RUN_GRACE, terminate_children
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.runtime import prefect_flows
from rudalle_lib.storage import bounds
from rudalle_lib.storage.urls import Url


def make_deployment(config: RunConfig, cron: str | None) -> RunnerDeployment:
    """Create a deployment whose form is filled in with a configuration.

    Only one of its runs is active at a time; further ones are queued.

    Args:
        config: default parameters of a run.
        cron: schedule of runs in cron syntax, if any.

    Raises:
        ConfigError: when `cron` is not a valid schedule, or a URL has a signature.
    """
    check_no_secrets(config)
    try:
        deployment = RunnerDeployment.from_flow(
            generate_dataset,
            name=config.name,
            cron=cron,
            parameters={"config": config.model_dump(mode="json")},
            concurrency_limit=ConcurrencyLimitConfig(
                limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
            ),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
    except ValueError:
        raise ConfigError(
            f"--cron {cron!r} is not a schedule; expected five fields, such as '0 2 * * *' (every "
            "night at 2:00)."
        ) from None
    deployment.entrypoint = f"{prefect_flows.__name__}.generate_dataset"  # no folder hides it
    return deployment


def check_no_secrets(config: RunConfig) -> None:
    """Check that a configuration can be stored on a server.

    Raises:
        ConfigError: a URL has a query or fragment, which may hold a signature or token.
    """
    for key, url in (
        ("prompts.uri", config.prompts.uri),
        ("output", config.output),
        ("weights.endpoint", config.weights.endpoint),
        ("publish.compare_with", config.publish.compare_with),
    ):
        if url is not None and Url(url).has_secrets:
            raise ConfigError(
                f"{key} is {Url(url)} with a query, which may hold a signature or token; Prefect "
                "would store it. Name a file that the worker can read with its own credentials."
            )


def open_doors() -> str:
    """A warning about what runs may read and write, empty if the environment bounds it."""
    doors = bounds.open_bounds()
    if not doors:
        return ""
    return "\n".join([
        "Warning: whoever can start runs on this Prefect server decides what they read and write "
        "here, because these variables are not set (see docs/security.md):",
        *(f"  {door}" for door in doors),
    ])  # fmt: skip


def serve_flow(config: RunConfig, cron: str | None, echo: Callable[[str], object]) -> None:
    """Register the deployment and execute its runs, each in its own process, until interrupted.

    Raises:
        KeyboardInterrupt, Terminated: after SIGINT and SIGTERM.
    """
    deployment = make_deployment(config, cron)
    if warning := open_doors():
        echo(warning)
    echo(
        f"Serving {generate_dataset.name}/{config.name}. Start runs at {PREFECT_UI_URL.value()}"
        "/deployments. Ctrl-C stops serving and pauses the schedule."
    )
    runner = _Runner(pause_on_shutdown=True, limit=1)
    runner.add_deployment(deployment)
    try:
        asyncio.run(runner.start())
    except KeyboardInterrupt:
        if runner.terminated:
            raise Terminated from None
        raise


class _Runner(Runner):
    """Ends after a signal like a run: it ends its runs in an orderly way and pauses the schedule.

    Prefect's class kills them with SIGKILL after Ctrl-C, so that their runs stay in the state
    Running and block all later ones. After SIGTERM it exits with 0 and leaves them alone.
    """

    terminated = False

    async def start(self, *arguments: Any, **options: Any) -> None:
        """Run until a signal."""
        self._cancel: Any = signal.getsignal(signal.SIGINT)  # asyncio's handler
        signal.signal(signal.SIGINT, self._stop)
        await super().start(*arguments, **options)

    def handle_sigterm(self, number: int, frame: FrameType | None) -> None:
        """Stop after SIGTERM."""
        self.terminated = True
        self._stop(number, frame)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        terminate_children(FLOW_RUN_GRACE + 1)
        self._cancel(number, frame)
