"""Prefect is embedded and quiet unless the environment sets otherwise."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.cli.options import PACKAGED
from flows.prefect_settings import (
    DEFAULTS,
    SIZE_VARIABLE,
    USUAL_SIZE,
    check_size,
    in_one_line,
    set_up_prefect,
    translate_server_errors,
)
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import ConfigError


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that answers, but only with an error."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as listening:
        thread = threading.Thread(target=listening.handle_request)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/api"
        thread.join()


def test_without_an_address_the_server_is_embedded_and_telemetry_is_off() -> None:
    environment: dict[str, str] = {}
    assert set_up_prefect(environment)
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["DO_NOT_TRACK"] == "1"


def test_prefect_accepts_the_settings_for_many_task_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.settings import Settings

    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    recorder = settings.server.services.task_run_recorder
    assert (recorder.batch_size, recorder.flush_interval) == (500, 1.0)
    assert settings.server.services.event_persister.batch_size == 500
    assert settings.client.retry_extra_codes == {500}


def test_variables_of_the_user_are_kept() -> None:
    environment = dict.fromkeys(DEFAULTS, "mine")
    set_up_prefect(environment)
    assert set(environment.values()) == {"mine"}


@pytest.mark.parametrize("value", ["", " "])
def test_empty_variables_count_as_not_set(value: str) -> None:
    """As in `PREFECT_API_URL=${SERVER:-}`; Prefect would send events to an empty address."""
    names = ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL")
    environment = {**dict.fromkeys(names, value), "OTHER": value}
    assert set_up_prefect(environment)
    assert environment == {**DEFAULTS, "OTHER": value}


def test_a_proxy_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1080/")
    with pytest.raises(ConfigError, match=r"^ALL_PROXY is not the address of .* unset it\.$"):
        set_up_prefect({})


def test_a_server_that_answers_is_used(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert not set_up_prefect({"PREFECT_API_URL": server})


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "nonsense"])
def test_a_server_that_does_not_answer_is_an_error_without_its_password(
    url: str,
) -> None:
    with pytest.raises(ConfigError, match="does not answer"):
        set_up_prefect({"PREFECT_API_URL": url})
    with pytest.raises(ConfigError) as raised:
        set_up_prefect({"PREFECT_API_URL": "http://me:secret@127.0.0.1:9/api"})
    assert "secret" not in str(raised.value)


DEAD = "http://127.0.0.1:9/api"
SETTINGS_FILES = {
    "home/profiles.toml": f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{DEAD}"\n',
    "prefect.toml": f'[api]\nurl = "{DEAD}"\n',
    "pyproject.toml": f'[tool.prefect.api]\nurl = "{DEAD}"\n',
    ".env": f"PREFECT_API_URL={DEAD}\n",
}
"""The places where Prefect looks for the address of a server, besides the variable."""

BROKEN = {
    "home/profiles.toml": "[[[",
    "home/logging.yml": "",
    "prefect.toml": "x = [",
    ".env": "PREFECT_LOGGING_LEVEL=LOUD\n",
}


def set_up_in(folder: Path, code: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Set up Prefect in a new process whose working directory is `folder`."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")}
    environment |= {
        "PREFECT_HOME": str(folder / "home"),
        "PYTHONPATH": str(PACKAGED.parent),
    }
    program = (
        "import sys, flows.prefect_settings as p\nfrom rudalle_lib.errors import ConfigError\n"
        "try: print(p.set_up_prefect(), p.load_settings().api.url)\n"
        "except ConfigError as error: sys.exit(str(error))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program + code],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", SETTINGS_FILES)
def test_a_dead_server_in_any_settings_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / name).write_text(SETTINGS_FILES[name])
    done = set_up_in(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"The Prefect server at {DEAD} does not answer")
    assert "unset the address in Prefect's profile or settings file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", BROKEN)
def test_broken_settings_are_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / name).write_text(BROKEN[name])
    done = set_up_in(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Prefect's settings are not valid: ")
    assert len(done.stderr.splitlines()) == 1


def test_without_a_server_an_embedded_one_must_be_allowed(tmp_path: Path) -> None:
    done = set_up_in(tmp_path, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false")
    assert done.returncode == 1 and "forbid an embedded server" in done.stderr


def test_telemetry_is_off_before_prefect_is_imported(tmp_path: Path) -> None:
    code = "import prefect, prefect.main\nfrom prefect.settings import get_current_settings as s\n"
    code += "print(s().server.analytics_enabled)"
    for package in ("flows", "tasks"):
        environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")}
        environment.pop("DO_NOT_TRACK", None)
        environment |= {
            "PREFECT_HOME": str(tmp_path),
            "PYTHONPATH": str(PACKAGED.parent),
        }
        command = [sys.executable, "-c", f"import {package}\n{code}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_prefect_is_not_imported_where_only_variables_can_set_it(
    tmp_path: Path,
) -> None:
    code = "import os, sys, flows.prefect_settings as p; os.chdir(sys.argv[1]); "
    code += "assert p.set_up_prefect(); assert 'prefect' not in sys.modules"
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")}
    environment |= {
        "PREFECT_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(PACKAGED.parent),
    }
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    assert not (tmp_path / "home").exists()


def test_a_web_page_is_not_an_api() -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as listening:
        thread = threading.Thread(target=listening.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{listening.server_port}"
        with pytest.raises(ConfigError, match=r"answers with a web page.*has a path, such as http"):
            set_up_prefect({"PREFECT_API_URL": url})
        thread.join()


def test_a_server_that_dies_during_a_run_is_one_sentence() -> None:
    expected = pytest.raises(ConfigError, match=r"not answer any more \(ConnectError: refused\)")
    with expected, translate_server_errors():
        raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '{"exception_detail":[{"msg":"Not so."}]}',
            r"rejects a request \(422: Not so\)\.$",
        ),
        ("<html>\nhttp://me:secret@x/", r"\(422: <html> http://x/\)"),
        ("{}", r"\(422: {}\)"),
    ],
)
def test_a_request_that_the_server_rejects_is_one_sentence(text: str, sentence: str) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    response = httpx.Response(422, text=text, request=httpx.Request("POST", DEAD))
    with pytest.raises(ConfigError, match=sentence), translate_server_errors():
        raise PrefectHTTPStatusError("x", request=response.request, response=response)


def test_other_errors_are_not_those_of_the_server() -> None:
    with pytest.raises(ZeroDivisionError), translate_server_errors():
        _ = 1 / 0


def test_texts_of_other_packages_are_one_line_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    urls = "https://me:pw@host/x?token=t 'postgresql+asyncpg://a:b@h/db'"
    text = f"one\n two {urls} hush-hush \x1b[1m"
    line = in_one_line(text)
    assert line.startswith("one two https://host/x 'postgresql+asyncpg://h/db' ***")
    assert not any(secret in line for secret in ("pw", "token", "a:b", "hush", "\x1b"))
    assert len(in_one_line("x " * 1000)) <= 400


def words(count: int) -> RunConfig:
    publish = {"blocked_words": [f"нежелательный{number}*" for number in range(count)]}
    return RunConfig.model_validate({"publish": publish})


def test_a_limit_that_is_no_number_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=f"^{SIZE_VARIABLE} is '8M'; expected a whole number"):
        check_size({}, {SIZE_VARIABLE: "8M"})


def test_ten_thousand_blocked_words_fit_the_embedded_server() -> None:
    environment: dict[str, str] = {}
    set_up_prefect(environment)
    settings = words(10_000).model_dump(mode="json")
    assert len(json.dumps(settings)) > USUAL_SIZE
    check_size(settings, environment)


def test_settings_that_another_server_would_refuse_are_named(server: str) -> None:
    environment = {"PREFECT_API_URL": server}
    set_up_prefect(environment)
    with pytest.raises(ConfigError, match=r"at most 524,288. Shorten publish.blocked_words \("):
        check_size(words(10_000).model_dump(mode="json"), environment)
    check_size(words(10).model_dump(mode="json"), environment)
    check_size(words(10_000).model_dump(mode="json"), {**environment, SIZE_VARIABLE: "8388608"})


@pytest.mark.slow
def test_the_embedded_server_accepts_large_parameters() -> None:
    code = (
        "from flows.prefect_settings import set_up_prefect; set_up_prefect()\n"
        "from prefect import flow\n"
        "@flow\n"
        "def measure(text: str) -> int:\n"
        "    return len(text)\n"
        "print(measure('x' * 2_000_000))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_API")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.strip() == "2000000", done.stderr[-2000:]
