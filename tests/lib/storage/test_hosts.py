"""Private addresses are recognised however they are written; proxies come from the environment."""

from __future__ import annotations

import httpx
import pytest

from rudalle_lib.storage.hosts import (
    PrivateHostError,
    ProxyError,
    check_proxies,
    check_public,
    is_loopback,
    is_public,
    proxy_for,
    resolve,
)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",  # shared by a provider's customers
        "169.254.169.254",  # the metadata service of clouds
        "192.0.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b::169.254.169.254",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "4000::1",
    ],
)
def test_addresses_that_are_not_on_the_internet(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(PrivateHostError, match="the host x has the private address .*; do this"):
        check_public("x", ["1.1.1.1", address], "do this")


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "2606:4700::1111",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
    ],
)
def test_addresses_on_the_internet(address: str) -> None:
    assert is_public(address)
    check_public("x", [address], "")


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "localhost", "LOCALHOST"]
)
def test_every_notation_of_loopback_resolves_to_it(host: str) -> None:
    assert not any(map(is_public, resolve(host, 80)))


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "127.0.0.2", "::1", "LocalHost."])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["example.com", "localhost.example.com", "10.0.0.1", "::2"])
def test_other_hosts(host: str) -> None:
    assert not is_loopback(host)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for("http", "example.com") is None
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("HTTPS_PROXY", "secure-proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example,.local")
    assert proxy_for("http", "example.com") == "http://proxy:3128"
    assert proxy_for("https", "example.com") == "http://secure-proxy:3128"
    assert proxy_for("http", "inside.example") is None
    assert proxy_for("http", "a.local") is None
    assert proxy_for("http", "127.0.0.1") is None
    assert proxy_for("http", "localhost") is None
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("ALL_PROXY", "http://any:1")
    assert proxy_for("http", "example.com") == "http://any:1"


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize(
    "proxy", ["host:3128", "http://u:p@host", "https://[::1]:1", "socks5://host:1", "socks5h://h"]
)
def test_a_proxy_that_can_be_used(name: str, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes is what httpx accepts, which Prefect and the hub use."""
    monkeypatch.setenv(name, proxy)
    check_proxies()
    httpx.Client().close()


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize(
    "proxy",
    ["::::", "socks://host:1", "socks4://h:1", "ftp://h", "http://[::1", "http://h:99999", "//h:1",
     "http://", "http://secret:pa ss@h", "http:///x", "http://h:x", "http://h:0"],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    name: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, proxy)
    with pytest.raises(ProxyError, match=f"^{name} is not the address of a proxy") as raised:
        check_proxies()
    assert "secret" not in str(raised.value)
    with pytest.raises(ProxyError, match=f"{name.lower()} is not the address of a proxy"):
        proxy_for("https" if "HTTPS" in name else "http", "example.com")


@pytest.mark.usefixtures("no_proxies")
def test_a_socks_proxy_is_none_for_tables_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://host:1080")
    with pytest.raises(ProxyError, match="all_proxy names a SOCKS proxy.*set https_proxy to"):
        proxy_for("https", "example.com")
    monkeypatch.setenv("no_proxy", "example.com")
    assert proxy_for("https", "example.com") is None
