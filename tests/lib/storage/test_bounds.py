"""The environment bounds what configurations may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.storage.bounds import (
    ENDPOINTS,
    INPUTS,
    OUTPUTS,
    PACKAGE,
    BoundsError,
    check_allowed,
    is_named,
    open_bounds,
    prefixes,
)


@pytest.fixture(autouse=True)
def unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (INPUTS, OUTPUTS, ENDPOINTS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data:/tables", ["/data", "/tables"]),
        ("/data,/tables,", ["/data", "/tables"]),
        ("data:out", ["data", "out"]),
        ("s3://bucket/a:/data", ["s3://bucket/a", "/data"]),
        (
            "/data:s3://bucket/a:https://host:8080/x",
            ["/data", "s3://bucket/a", "https://host:8080/x"],
        ),
        ("s3://a:s3://b", ["s3://a", "s3://b"]),
        ("http://[::1]:80/x,~/data", ["http://[::1]:80/x", "~/data"]),
        ("https://h:80/x:./y", ["https://h:80/x", "./y"]),
        ("", []),
        (" , ", []),
    ],
)
def test_prefixes_are_separated_by_commas_or_colons(value: str, expected: list[str]) -> None:
    assert prefixes(value) == expected


@pytest.mark.parametrize(
    ("prefix", "allowed", "refused"),
    [
        ("s3://bucket/team", ["s3://bucket/team", "s3a://bucket/team/x"], ["s3://bucket/team2/x"]),
        ("s3://bucket", ["s3://bucket/x"], ["s3://bucket2/x", "gs://bucket/x", "/bucket/x"]),
        ("s3://bucket/a", [], ["s3://bucket/a/../b", "s3://bucket/./a/x", "s3://bucket/b"]),
        ("s3://", ["s3://any/x"], ["https://any/x"]),
        ("https://host/a", ["https://HOST/a/b?x=1", "https://host:443/a", "https://host./a/b"],
         ["http://host/a/b", "https://host:444/a/b", "https://host.evil/a/b", "https://host/ab",
          "https://host/a/../b", "https://host/a/%2e%2e/b", "https://host/a/..%2fb",
          "https://host/a/..\\b", "https://host@evil/a"]),
        ("gs://b", ["gcs://b/x"], ["gs://c/x"]),
    ],
)  # fmt: skip
def test_a_prefix_allows_what_is_below_it(
    prefix: str, allowed: list[str], refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INPUTS, prefix)
    for url in allowed:
        check_allowed(url, INPUTS)
        assert is_named(url, INPUTS) == (prefix != "s3://")
    for url in refused:
        with pytest.raises(BoundsError, match=f"{INPUTS} does not allow it; it allows {prefix}"):
            check_allowed(url, INPUTS)
        assert not is_named(url, INPUTS)


def test_a_prefix_without_a_host_names_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INPUTS, "http://")
    check_allowed("http://10.0.0.1/x", INPUTS)
    assert not is_named("http://10.0.0.1/x", INPUTS)


def test_local_paths_are_compared_after_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.csv").touch()
    (inside / "link").symlink_to(outside)
    (inside / "file.csv").symlink_to(outside / "secret.csv")
    (tmp_path / "way-in").symlink_to(inside)
    monkeypatch.setenv(INPUTS, str(inside))
    monkeypatch.chdir(inside / "deep")
    for path in (inside, inside / "x.csv", tmp_path / "way-in" / "x.csv", "x.csv", "../y.csv"):
        check_allowed(str(path), INPUTS)
    check_allowed((inside / "a b.csv").as_uri(), INPUTS)
    for path in (
        outside, inside / "link" / "secret.csv", inside / "file.csv", inside / ".." / "outside",
        "../../outside/x", f"{inside}2/x", "/etc/passwd", "~/x", (outside / "a b.csv").as_uri(),
        f"file://{inside}/%2e%2e/outside/x",
    ):  # fmt: skip
        with pytest.raises(BoundsError):
            check_allowed(str(path), INPUTS)


def test_the_package_and_the_demo_table_are_always_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(INPUTS, "/nowhere")
    check_allowed("demo://prompts", INPUTS)
    check_allowed(str(PACKAGE / "demo" / "prompts.csv"), INPUTS)


def test_an_empty_variable_allows_nothing_and_a_missing_one_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_allowed("/etc/passwd", OUTPUTS)
    assert not is_named("/etc/passwd", OUTPUTS)
    monkeypatch.setenv(OUTPUTS, "")
    with pytest.raises(BoundsError, match=f"{OUTPUTS} does not allow it; it allows nothing"):
        check_allowed("/tmp/x", OUTPUTS)


def test_open_bounds_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.partition(":")[0] for one in open_bounds()] == [INPUTS, OUTPUTS, ENDPOINTS]
    monkeypatch.setenv(OUTPUTS, "/data")
    assert [one.partition(":")[0] for one in open_bounds()] == [INPUTS, ENDPOINTS]


def test_the_message_shows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINTS, "https://me:secret@host/?token=secret")
    with pytest.raises(BoundsError) as raised:
        check_allowed("https://other/?secret", ENDPOINTS)
    assert "secret" not in str(raised.value)
