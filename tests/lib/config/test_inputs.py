"""The prompt table and the weights: which places may be named, and how they are read."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import pytest
from pydantic import ValidationError

from rudalle_lib.config.inputs import PromptsConfig, WeightsConfig
from rudalle_lib.config.run import RunConfig
from rudalle_lib.storage.urls import Url
from tests.support.configs import config_error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: s3:/bucket/x", "output: s3:/ is not a URL; expected s3://bucket/prefix"),
        ("output: htp://host/x", "output: unknown kind of URL.*did you mean http://"),
        ("output: a::b", "output: chains of URLs"),
        ("output: demo://prompts", "output: unknown kind of URL"),
        ("output: reference://x", "output: unknown kind of URL; expected .*, found reference://"),
        ("prompts: {uri: 'zip://a.csv::http://host/x'}", "prompts.uri: chains of URLs"),
        ("prompts: {uri: 'sftp://host/x.csv'}", "prompts.uri: unknown kind of URL"),
        ("prompts: {uri: 'demo:prompts'}", "prompts.uri: this is not a URL"),
        ("weights: {folder: 'https://host/x'}", "weights.folder: expected a local folder"),
        ("weights: {folder: 's3:/x'}", "weights.folder: s3:/ is not a URL"),
        ("weights: {endpoint: 's3://bucket'}", "weights.endpoint: unknown kind of URL"),
        ("weights: {endpoint: 'host'}", "weights.endpoint: expected a URL such as https://host"),
        ("weights: {endpoint: 'https://me:hunter2@host'}", "weights.endpoint: a URL must not"),
        ("prompts: {total_seconds: 0}", "prompts.total_seconds"),
        ("prompts: {read_seconds: .inf}", "prompts.read_seconds"),
        ("prompts: {connect_seconds: 100000}", "prompts.connect_seconds"),
    ],
)
def test_other_places_are_named_by_their_key(text: str, message: str) -> None:
    found = config_error(text)
    assert "hunter2" not in found and "\n" not in found
    assert re.search(message, found), found


def test_rows_are_read_by_stricter_rules_than_the_table() -> None:
    section = PromptsConfig(connect_seconds=1, read_seconds=2, total_seconds=3)
    table, rows = section.reading(), section.reading(rows=True)
    assert (rows.connect_seconds, rows.read_seconds, rows.total_seconds) == (1, 2, 3)
    assert table.private_hosts and not rows.private_hosts and rows.bounded
    assert PromptsConfig(allow_private_hosts=True).reading(rows=True).private_hosts


def test_later_settings_change_no_digest() -> None:
    before = RunConfig()
    assert RunConfig.model_validate(before.model_dump()).digest() == before.digest()
    assert set(PromptsConfig.added_later).isdisjoint(before.digested()["prompts"])
    changed: dict[str, Any] = {"prompts": {"allow_private_hosts": True}}
    assert RunConfig.model_validate(changed).digest() != before.digest()


def test_urls_keep_their_signature_only_in_this_process() -> None:
    signed = "https://host/a.csv?X-Amz-Signature=secret"
    config = RunConfig.model_validate(
        {"prompts": {"uri": signed}, "weights": {"endpoint": "https://mirror/?sig=secret"}}
    )
    for same in (
        config,
        pickle.loads(pickle.dumps(config)),
        config.model_copy(deep=True),
        RunConfig.model_validate(config.model_dump()),
        RunConfig.model_validate(config),
    ):
        uri = same.prompts.uri
        assert isinstance(uri, Url) and uri.full == signed
        assert isinstance(same.weights.endpoint, Url) and same.weights.endpoint.has_secrets
    for text in (
        str(config), repr(config), config.model_dump_json(), f"{config.prompts.uri}",
        json.dumps(config.public_dict()), json.dumps(config.model_dump(mode="json")),
        json.dumps(config.digested()), str(config.model_dump()),
    ):  # fmt: skip
        assert "host/a.csv" in text and "secret" not in text
    renewed = config.model_dump() | {"prompts": {"uri": signed + "2"}}
    assert RunConfig.model_validate(renewed).digest() == config.digest()


def test_an_error_of_validation_shows_no_signature() -> None:
    with pytest.raises(ValidationError) as raised:
        WeightsConfig.model_validate({"endpoint": "ftp://host/?token=secret"})
    assert "secret" not in str(raised.value)
