"""The flow as a deployment of a Prefect server: a form there, filled in with a configuration.

For teams with work pools there is `prefect.yaml`, at the root of the repository.
"""

from __future__ import annotations

from collections.abc import Callable

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.settings import PREFECT_UI_URL
from prefect.types.entrypoint import EntrypointType

from flows.generate_dataset import generate_dataset
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import ConfigError


def make_deployment(config: RunConfig, cron: str | None) -> RunnerDeployment:
    """A deployment whose form begins with this configuration; its runs wait for each other.

    Raises:
        ConfigError: no such schedule.
    """
    try:
        return RunnerDeployment.from_flow(
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
            f"--cron {cron!r} is no schedule; expected five fields, as in '0 2 * * *', every night."
        ) from None


def serve_flow(config: RunConfig, cron: str | None, say: Callable[[str], object]) -> None:
    """Register the deployment and do its runs, each in a process of its own, until interrupted."""
    deployment = make_deployment(config, cron)
    say(
        f"Serving {generate_dataset.name}/{config.name}: start runs at {PREFECT_UI_URL.value()}"
        "/deployments. Ctrl-C stops, and pauses its schedule."
    )
    serve(deployment, print_starting_message=False, limit=1)
