"""Prefect is embedded and quiet unless the environment says otherwise."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from flows.embedded import DEFAULTS, set_up_prefect
from rudalle_lib.errors import ConfigError


@pytest.fixture
def server() -> Iterator[str]:
    """The address of something that answers, if only with an error."""
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


def test_prefect_knows_the_settings_that_keep_every_task_run(
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


def test_what_the_user_has_set_stays() -> None:
    own = dict.fromkeys(DEFAULTS, "mine")
    set_up_prefect(own)
    assert set(own.values()) == {"mine"}


def test_a_server_that_answers_is_used(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert not set_up_prefect({"PREFECT_API_URL": server})


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "nonsense"])
def test_a_server_that_does_not_is_an_error_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="does not answer"):
        set_up_prefect({"PREFECT_API_URL": url})
    with pytest.raises(ConfigError) as raised:
        set_up_prefect({"PREFECT_API_URL": "http://me:secret@127.0.0.1:9/api"})
    assert "secret" not in str(raised.value)
