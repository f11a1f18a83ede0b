"""Variables that are set before other packages are imported: telemetry, proxies, the home."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.runtime.environment import LOOPBACK, exempt_loopback, prepare, private_folder

ROOT = Path(__file__).resolve().parents[3]


def test_telemetry_is_off_unless_the_user_sets_it() -> None:
    environment: dict[str, str] = {}
    prepare(environment)
    assert environment == {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    environment = {"DO_NOT_TRACK": "0", "PREFECT_SERVER_ANALYTICS_ENABLED": "true"}
    prepare(environment)
    assert environment == {"DO_NOT_TRACK": "0", "PREFECT_SERVER_ANALYTICS_ENABLED": "true"}


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("kept", ["", "example.com", " a.example , .b.example", "127.0.0.1", "*"])
def test_loopback_is_never_reached_through_a_proxy(
    name: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {name: "http://10.255.255.1:3128", "NO_PROXY": kept}
    exempt_loopback(environment)
    monkeypatch.setattr(os, "environ", environment)
    for host in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
        assert urllib.request.proxy_bypass(host) or host.startswith("[")
    for host in kept.split(","):
        assert (
            not host.strip(" .")
            or urllib.request.proxy_bypass(f"x.{host.strip(' .')}")
            or (host == "127.0.0.1")
        )


@given(st.lists(st.sampled_from(["a.example", *LOOPBACK])))
def test_exempting_loopback_again_changes_nothing(hosts: list[str]) -> None:
    environment = {"http_proxy": "http://proxy:1", "no_proxy": ",".join(hosts)}
    exempt_loopback(environment)
    once = dict(environment)
    exempt_loopback(environment)
    assert environment == once
    assert set(environment["NO_PROXY"].split(",")) == {*hosts, *LOOPBACK}


def test_without_a_proxy_nothing_is_set() -> None:
    environment = {"NO_PROXY": "x"}
    exempt_loopback(environment)
    assert environment == {"NO_PROXY": "x"}


def test_a_private_folder_is_found_again_but_never_that_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = private_folder("home")
    assert folder == tmp_path / "home" == private_folder("home")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    other = private_folder("home")
    assert other != folder and other.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert private_folder("link") != tmp_path / "link"
    (tmp_path / "file").touch()
    assert private_folder("file").is_dir()


@pytest.mark.parametrize("package", ["tasks", "flows"])
def test_a_user_without_an_entry_and_without_a_home_gets_one(package: str, tmp_path: Path) -> None:
    code = f"""
import pathlib, pwd, tempfile
def getpwuid(uid): raise KeyError(uid)  # as in a container with --user 12345
pwd.getpwuid = getpwuid
tempfile.tempdir = {str(tmp_path)!r}
import {package}
print(pathlib.Path.home())
"""
    environment = {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.strip() == f"{tmp_path}/rudalle-flows-home-{os.getuid()}"
