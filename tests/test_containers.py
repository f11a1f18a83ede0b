"""What Dockerfile, compose.yaml and deploy/ name is really there: files, commands, settings."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from flows.cli import app
from rudalle_lib.storage import bounds

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
IGNORED = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
IMAGES = ("rudalle-flows", "rudalle-flows:cuda")


@cache
def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments; continued lines are joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


@cache
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    return content


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return found


def is_sent(path: str) -> bool:
    """Whether a file of the repository is in the context of a build."""
    sent = False
    for rule in IGNORED:
        if rule and not rule.startswith("#"):
            pattern = rule.removeprefix("!")
            parts = [path, *(parent.as_posix() for parent in Path(path).parents)]
            names = [pattern, pattern.removeprefix("**/")]
            if any(fnmatch.fnmatch(part, name) for part in parts for name in names):
                sent = rule.startswith("!")
    return sent


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    copied = [arguments.split() for kind, arguments in instructions() if kind == "COPY"]
    own = [path for words in copied if "--from" not in words[0] for path in words[:-1]]
    assert "constraints.txt" in own
    for path in own:
        if path != ".":
            assert (ROOT / path).exists() and is_sent(path.removeprefix("./")), path


def test_the_package_is_built_from_what_is_sent() -> None:
    packages = [
        name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    ]
    names = [*packages, "pyproject.toml", PROJECT["project"]["readme"]]
    names += PROJECT["project"]["license-files"]
    for name in names:
        assert is_sent(name), name
    sources = PROJECT["tool"]["setuptools"]["ext-modules"][0]["sources"]
    assert all(is_sent(path) for path in sources)
    for private in (".git", ".venv/bin/python", "output/demo/run.json", ".env", "tests/conftest.py",
                    "flows/__pycache__/a.pyc", "rudalle_lib/kernels/_kernels.so"):  # fmt: skip
        assert not is_sent(private), private


def test_stages_are_defined_before_they_are_used() -> None:
    known = {"${BASE}"}
    for kind, arguments in instructions():
        if kind == "FROM":
            base, _, name = arguments.split()
            assert base in known, arguments
            known.add(name)
        for used in re.findall(r"(?:--from=|from=)([a-z-]+)", arguments):
            assert used in known, arguments


def test_scripts_that_are_run_exist_and_know_their_arguments() -> None:
    from tools.install_torch import CHOICES

    runs = " ".join(arguments for kind, arguments in instructions() if kind == "RUN")
    for script in re.findall(r"python (tools/\S+)", runs):
        assert (ROOT / script).exists()
    assert {"cpu", "cuda"} < set(CHOICES)
    (default,) = [a for kind, a in instructions() if kind == "ARG" and a.startswith("TORCH=")]
    assert default == "TORCH=cpu"


def test_the_image_is_for_a_user_without_rights_and_is_healthy_if_it_starts() -> None:
    (user,) = [arguments for kind, arguments in instructions() if kind == "USER"]
    assert user == "rudalle" and f"--uid 10001 {user}" in DOCKERFILE
    after = instructions()[instructions().index(("USER", "rudalle")) :]
    assert not [kind for kind, _ in after if kind in ("RUN", "COPY")]
    (health,) = [arguments for kind, arguments in instructions() if kind == "HEALTHCHECK"]
    check_command(json.loads(health.partition("CMD ")[2]))
    (command,) = [arguments for kind, arguments in instructions() if kind == "CMD"]
    check_command(json.loads(command))


def test_the_version_is_that_of_the_package() -> None:
    assert f"ARG VERSION={PROJECT['project']['version']}\n" in DOCKERFILE


def check_command(words: list[str]) -> None:
    """Check that a command of ours or of Prefect exists, with its options."""
    if words[0] in PROJECT["project"]["scripts"]:
        group: Any = typer.main.get_command(app)
        command = group if words[1].startswith("-") else group.commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in words[1:]:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, word
    else:
        assert words[0] in ("prefect", "sh", "python3")
        assert shutil.which(words[0]) or words[0] == "prefect"


@pytest.mark.parametrize("name", ["prefect", "deploy", "worker"])
def test_services_of_our_image_are_confined(name: str) -> None:
    service = compose()["services"][name]
    assert service["image"] in IMAGES and service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "/tmp" in service["tmpfs"]
    check_command(service["command"])


def test_services_wait_for_services_that_exist_and_are_healthy() -> None:
    services = compose()["services"]
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
            assert name in services
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose()["volumes"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")  # nothing for other machines


def test_deployments_are_registered_for_the_pool_of_the_worker() -> None:
    """`prefect deploy` fails if a pool does not exist, and then the worker would not start."""
    services = compose()["services"]
    command = services["deploy"]["command"][-1]
    made = re.findall(r"work-pool create (\S+)", command)
    names = re.findall(r"--name (\S+)", command)
    pools = {one["name"]: one["work_pool"]["name"] for one in deployments()}
    assert names and {pools[name] for name in names} == set(made)
    worker = services["worker"]["command"]
    assert worker[worker.index("--pool") + 1] in made
    parents = [one["parameters"] for one in deployments() if one["name"] in names]
    started = [one["deployment"].partition("/")[2] for one in parents if "deployment" in one]
    assert set(started) <= set(names)


def test_the_variables_of_services_are_known() -> None:
    from prefect.settings import Settings

    known = {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", bounds.OUTPUTS}
    known.add(bounds.ENDPOINTS)
    fields = Settings().to_environment_variables(exclude_unset=False)
    known |= {*fields, "PREFECT_API_URL"}  # unset here
    for name in ("prefect", "deploy", "worker"):
        variables = set(compose()["services"][name]["environment"])
        assert variables <= known, variables - known


def test_commands_in_comments_name_deployments_and_pools_that_exist() -> None:
    flows = {
        f"{one['entrypoint'].rpartition('.')[2].replace('_', '-')}/{one['name']}"
        for one in deployments()
    }
    docs = (ROOT / "docs" / "operations.md").read_text("utf-8")
    named = re.findall(r"(generate-(?:dataset|shards|on-workers)/[a-z-]+)", docs + compose_text())
    assert {"generate-dataset/demo", "generate-on-workers/on-workers"} <= set(named) <= flows
    made = re.findall(r"work-pool create ([a-z]+)", (ROOT / "prefect.yaml").read_text("utf-8"))
    assert {one["work_pool"]["name"] for one in deployments()} == set(made)


def compose_text() -> str:
    return (ROOT / "compose.yaml").read_text("utf-8")


def test_images_have_the_names_that_the_dockerfile_gives_them() -> None:
    for one in deployments():
        image = one["work_pool"].get("job_variables", {}).get("image")
        assert image in (None, *IMAGES)
    for name in IMAGES:
        assert f"docker build -t {name} " in DOCKERFILE


def test_the_job_of_kubernetes_runs_a_command_that_exists_and_mounts_what_it_writes_to() -> None:
    job = yaml.safe_load((ROOT / "deploy" / "kubernetes-job.yaml").read_text("utf-8"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_command(container["args"])
    assert container["image"] in IMAGES
    assert pod["securityContext"]["runAsUser"] == 10001
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert {"/tmp", "/home/rudalle"} <= {m["mountPath"] for m in container["volumeMounts"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_template_of_prefects_chart_uses_variables_that_it_defines() -> None:
    values = yaml.safe_load((ROOT / "deploy" / "prefect-worker.yaml").read_text("utf-8"))
    config = values["worker"]["config"]
    template = json.loads(config["baseJobTemplate"]["configuration"])
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    (pod,) = [one for one in deployments() if one["name"] == "pod"]
    assert pod["work_pool"]["name"] == config["workPool"]
    assert set(pod["work_pool"]["job_variables"]) <= used
    assert template["variables"]["properties"]["image"]["default"] in IMAGES


def test_commands_in_the_dockerfiles_comments_are_whole() -> None:
    comments = re.sub(r"\\\n#\s*", "", DOCKERFILE)
    runs = [shlex.split(one) for one in re.findall(r"^#     (docker run .*)", comments, re.M)]
    assert len(runs) == 2
    for words in runs:
        check_command(words[words.index("rudalle-flows", words.index("rudalle-flows")) + 1 :])
