"""Where the requests go, and what every one of them says besides its picture."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loadtest.errors import CannotRun
from loadtest.wire import Connection, Header, Owner, build_request

DEFAULT_PATH = "/v1/segment"


@dataclass(frozen=True, slots=True)
class Target:
    """One address. `headers` may hold a key, so they are in no text made from this."""

    scheme: str
    host: str
    port: int
    path: str  # with its query
    headers: list[Header] = field(repr=False)

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"

    def post(self, payload: bytes) -> bytes:
        """The bytes of a request that segments `payload`."""
        return build_request("POST", self.path, self.authority, self.headers, payload)

    def get(self, path: str) -> bytes:
        return build_request("GET", path, self.authority, self.headers)


def parse_target(url: str, header_lines: list[str], key: str | None) -> Target:
    """
    Args:
        url: http://host:port, with the path /v1/segment unless it has one of its own; parameters go in its query.
        header_lines: more headers, as `Name: value`.
        key: for `Authorization: Bearer ...`, unless a header line says otherwise.

    Raises:
        CannotRun: the address or a header cannot be used.
    """
    headers: list[Header] = []
    for line in header_lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or "\n" in line or "\r" in line:
            raise CannotRun("--header wants 'Name: value'")
        headers.append((name.strip(), value.strip()))
    if key and not any(name.lower() == "authorization" for name, _ in headers):
        headers.append(("Authorization", f"Bearer {key}"))
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or _default_port(parts.scheme)
    except ValueError as error:
        raise CannotRun(f"{url!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CannotRun(f"{url!r} is no address; something like http://127.0.0.1:8000 is wanted")
    if parts.username or parts.password:
        raise CannotRun("an address with a name or password in it would be printed; use --header or MASKSERVE_API_KEY")
    path = parts.path if parts.path not in ("", "/") else DEFAULT_PATH
    return Target(parts.scheme, parts.hostname, port, f"{path}?{parts.query}" if parts.query else path, headers)


class Dialler:
    """Opens connections to a target; its name is looked up once, not once per connection."""

    def __init__(self, target: Target, patience_s: float) -> None:
        self._target, self._patience_s = target, patience_s
        self._addresses: list[str] = []
        self._tls = ssl.create_default_context() if target.scheme == "https" else None

    async def connect(self, owner: Owner) -> Connection:
        """
        Raises:
            OSError: nobody answers there, or not in time.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                return await self._connect(owner)
        except TimeoutError:
            raise OSError(f"no connection within {self._patience_s:g} s") from None

    async def _connect(self, owner: Owner) -> Connection:
        loop = asyncio.get_running_loop()
        if not self._addresses:
            found = await loop.getaddrinfo(self._target.host, self._target.port, type=1)  # 1: SOCK_STREAM
            self._addresses = list(dict.fromkeys(str(address[4][0]) for address in found))
        name = self._target.host if self._tls else None
        for address in list(self._addresses):
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(owner), address, self._target.port, ssl=self._tls, server_hostname=name
                )
            except OSError:
                if address == self._addresses[-1]:
                    raise
            else:
                self._addresses = [address]
                return connection
        raise OSError(f"{self._target.host} has no address")


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
