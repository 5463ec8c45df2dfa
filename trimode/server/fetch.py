"""Fetches pictures from other hosts, for requests of strangers.

A stranger must not make the server ask what only the server can reach: services of its own machine
and network, or a cloud's metadata (server-side request forgery). So hosts must be on a list, their
addresses must be public, and the connection goes to the very address that was looked at: a name
that is resolved twice could mean another one the second time. Redirects take the same way.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from trimode.errors import InputError
from trimode.vision import ImageLimits, too_many_bytes

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}
_MOST_REDIRECTS = 3
_SECONDS = 10.0
"""For all of a picture, redirects included."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def check_hosts(hosts: Sequence[str]) -> None:
    """Raise InputError unless each is a host's name, `*.` and a domain, or `*`."""
    for host in hosts:
        name = host.removeprefix("*.") if host.startswith("*.") else host
        plain = name and all(c.isalnum() or c in ".-" for c in name) and name.isascii()
        if host != "*" and not plain:
            allowed = "a host such as images.example.org, *.example.org, or * for every host"
            raise InputError("allow_image_hosts", repr(host), allowed)


async def fetch_picture(url: str, hosts: Sequence[str], limits: ImageLimits, *, name: str) -> bytes:
    """The content of a picture's URL.

    Args:
        url: http or https.
        hosts: that may be asked.
        limits: of the file.
        name: the field that an error names.

    Raises:
        InputError: the host is not allowed or not public, it does not answer with a file in time,
            or the file is too large.
    """
    try:
        async with (
            asyncio.timeout(_SECONDS),
            httpx.AsyncClient(trust_env=False, timeout=_SECONDS) as client,
        ):
            for _ in range(_MOST_REDIRECTS + 1):
                found = await _ask(client, url, hosts, limits, name)
                if isinstance(found, bytes):
                    return found
                url = found
    except TimeoutError:
        raise InputError(name, "no picture in time", f"within {_SECONDS:g} seconds") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        # What failed in which way would tell a stranger about the network: only its kind is said.
        raise InputError(name, f"not fetched ({type(error).__name__})", "a reachable URL") from None
    raise InputError(name, "redirected again and again", f"at most {_MOST_REDIRECTS} times")


async def _ask(
    client: httpx.AsyncClient, url: str, hosts: Sequence[str], limits: ImageLimits, name: str
) -> bytes | str:
    """The file, or the URL that the host sends on to."""
    parts = _checked(url, hosts, name)
    host = parts.hostname or ""
    address = await public_address(host, name)
    bracketed = f"[{address}]" if address.version == 6 else str(address)
    target = parts._replace(netloc=f"{bracketed}:{_PORTS[parts.scheme]}", fragment="").geturl()
    headers = {"Host": host, "Accept": "image/*", "Accept-Encoding": "identity"}
    extensions = {"sni_hostname": host}
    async with client.stream("GET", target, headers=headers, extensions=extensions) as response:
        if response.is_redirect and (location := response.headers.get("location")):
            return urljoin(url, location)
        if response.status_code != 200:
            raise InputError(name, f"status {response.status_code}", "a URL that holds a picture")
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > limits.bytes:
                raise too_many_bytes(name, "more", limits)
        return bytes(content)


def _checked(url: str, hosts: Sequence[str], name: str) -> SplitResult:
    """The parts of a URL that may be asked.

    Raises:
        InputError: it may not.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InputError(name, repr(url[:80]), "must be a URL") from None
    host = (parts.hostname or "").lower()
    if parts.scheme not in _PORTS or not host:
        raise InputError(name, repr(url[:80]), "must be a data:, http: or https: URL")
    if not _is_listed(host, hosts):
        allowed = ", ".join(hosts) or "none: send a data: URL, or start with --allow-image-hosts"
        raise InputError(name, f"the host {host[:80]}", f"allowed: {allowed}")
    if parts.username is not None or port not in (None, _PORTS[parts.scheme]):
        raise InputError(name, "a user or a port in the URL", "neither is allowed")
    return parts


def _is_listed(host: str, hosts: Sequence[str]) -> bool:
    for listed in (entry.lower() for entry in hosts):
        if listed in ("*", host) or (listed.startswith("*.") and host.endswith(listed[1:])):
            return True
    return False


async def public_address(host: str, name: str) -> Address:
    """An address of a host.

    Raises:
        InputError: it has none, or one of them is not public.
        OSError: its name cannot be resolved.
    """
    found = await resolved(host)
    if not found or not all(map(is_public, found)):
        raise InputError(name, f"the host {host[:80]}", "a host whose addresses are all public")
    return found[0]


async def resolved(host: str) -> list[Address]:
    """The addresses of a host."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("not a host's name") from None
    addresses = (str(address[0]).partition("%")[0] for *_, address in found)
    return [ipaddress.ip_address(address) for address in dict.fromkeys(addresses)]


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, also if it hides an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return False
        if hidden is not None:
            return is_public(hidden)
    return address.is_global and not address.is_multicast and not address.is_reserved
