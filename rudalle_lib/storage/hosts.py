"""Addresses of web hosts, and which of them belong to a private network.

A prompt table may come from anybody, so a row must not make this machine ask its own services, its
neighbours, or the metadata service of a cloud. What counts is the address that a name resolves to
when it is connected to, not how the name is written: `2130706433` and `0x7f.1` are 127.0.0.1.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that a gateway translates to the IPv4 address in their last 32 bits."""

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The IPv6 addresses that are given to hosts on the internet."""


PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
"""Variables that name proxies, also in capitals."""

PROXY_KINDS = ("http", "https", "socks5", "socks5h")
"""Schemes of proxies."""


class ProxyError(ValueError):
    """A variable names a proxy that cannot be used."""


class PrivateHostError(ValueError):
    """A host whose address is private, loopback, link-local or otherwise not public."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host on the public internet.

    IPv4 addresses inside IPv6 addresses (mapped, 6to4, Teredo, NAT64) are judged themselves.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return all(map(_is_global, _with_embedded(parsed)))


def _is_global(address: Address) -> bool:
    unicast = address.version == 4 or address in GLOBAL_UNICAST
    return unicast and address.is_global and not address.is_multicast


def _with_embedded(address: Address) -> Iterable[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in NAT64 or int(address) >> 32 == 0:  # the latter: IPv4-compatible, and ::1
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    if address.teredo is not None:
        return [address, *address.teredo]
    return [address]


def resolve(host: str, port: int = 0) -> list[str]:
    """The IP addresses of a host name or of any notation of an address.

    Raises:
        socket.gaierror: there is no such host, or no answer.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def check_public(host: str, addresses: Iterable[str], hint: str) -> None:
    """Check that all addresses of a host are public.

    Args:
        host: the host as it is named.
        addresses: its IP addresses.
        hint: what to do, the end of the message.

    Raises:
        PrivateHostError: one of them is not.
    """
    for address in addresses:
        if not is_public(address):
            raise PrivateHostError(f"the host {host} has the private address {address}; {hint}")


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine, without asking a name server."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def proxy_for(scheme: str, host: str) -> str | None:
    """The HTTP proxy that the environment names for a host; loopback needs none.

    The variables are `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, also in capitals.

    Raises:
        ProxyError: it is not the address of a proxy, or not of an HTTP proxy.
    """
    proxies = getproxies_environment()
    name = f"{scheme}_proxy" if proxies.get(scheme) else "all_proxy"
    proxy = proxies.get(name.removesuffix("_proxy"))
    if not proxy or is_loopback(host) or proxy_bypass(host):
        return None
    found = _proxy_url(name, proxy)
    if not found.startswith(("http://", "https://")):
        raise ProxyError(
            f"{name} names a SOCKS proxy, which tables and images cannot be read through; set "
            f"{scheme}_proxy to an HTTP proxy, or name the host in no_proxy"
        )
    return found


def check_proxies() -> None:
    """Check that the proxies in the environment can be used; some libraries try all of them.

    Raises:
        ProxyError: one of them is not the address of a proxy.
    """
    for name, value in os.environ.items():
        if name.lower() in PROXY_VARIABLES and value:
            _proxy_url(name, value)


def _proxy_url(name: str, value: str) -> str:
    """The URL of a proxy in the variable `name`, with its scheme."""
    url = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in PROXY_KINDS and bool(parts.hostname) and parts.port != 0
        is_valid = is_valid and not re.search(r"\s", url)
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ProxyError(
            f"{name} is not the address of a proxy; expected for example http://host:3128 or "
            "socks5://host:1080. Correct it, or unset it"
        )
    return url
