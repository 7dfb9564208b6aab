"""Who may ask what, when keys are configured (`--keys FILE`); without them everybody may ask everything.

    {"keys": [{"name": "microscope 2", "sha256": "<of the key>", "may": ["segment"], "per_second": 5, "burst": 20}]}

Groups: `segment` (everything but metrics), `metrics`, and `priority`, which lets a request name its place in the queue.
A client sends `Authorization: Bearer <key>`. The file holds only hashes, so reading it gives nobody a key:
`python -c "import hashlib; print(hashlib.sha256(input().encode()).hexdigest())"`. `/livez` and `/readyz` stay open.

A browser asks its user for a name and a password when the page is opened; the key is the password, the name may be any
(RFC 7617). It then sends both with all that comes here, also what pages of other sites make it send, so a POST with a
password has to come from a page of this server, as its `Origin` tells.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import BadKeys, Forbidden, RateLimited, Unauthorized

if TYPE_CHECKING:  # the supervisor, which counts keys and serves nobody, is to stay small
    from starlette.types import Scope

Group = Literal["segment", "metrics", "priority"]

OPEN = frozenset(("/livez", "/readyz"))


class Key(BaseModel):
    """One caller."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    may: frozenset[Group] = Field(min_length=1)
    per_second: float | None = Field(None, gt=0, description="segmentation requests a second; no quota when null")
    burst: float = Field(10, ge=1, description="requests that may come at once after a pause")


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key] = Field(min_length=1)


def read_keys(path: Path) -> list[Key]:
    """
    Raises:
        BadKeys: missing, malformed, or the same key twice.
    """
    try:
        keys = _KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise BadKeys(f"cannot read --keys {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadKeys(f"{path}: {where}: {first['msg']}; see server/http/keys.py for the form") from None
    if len({key.sha256 for key in keys}) != len(keys):
        raise BadKeys(f"{path}: two entries hold the same key")
    return keys


class Bucket(Protocol):
    """What a quota holds; several processes may share one."""

    def change(self, amount: Callable[[float | None, float], tuple[float, float]]) -> None:
        """Replace what is held: `amount` is given that (None at first) and since when, and returns both anew."""


class OwnBucket:
    """A bucket of one process."""

    def __init__(self) -> None:
        self._held: tuple[float | None, float] = (None, 0.0)

    def change(self, amount: Callable[[float | None, float], tuple[float, float]]) -> None:
        self._held = amount(*self._held)


class Quota:
    """A bucket that fills with `per_second` up to `burst`; every request takes one."""

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float], bucket: Bucket | None = None
    ) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._bucket = bucket or OwnBucket()

    def take(self) -> float:
        """0.0 when a request may pass, else the seconds until one may."""
        wait = 0.0

        def amount(before: float | None, at: float) -> tuple[float, float]:
            nonlocal wait
            now = self._clock()
            held = self._burst if before is None else min(self._burst, before + (now - at) * self._per_second)
            if held >= 1.0:
                return held - 1.0, now
            wait = (1.0 - held) / self._per_second
            return held, now

        self._bucket.change(amount)
        return wait


class Guard:
    """
    Args:
        bucket: for the quota of the nth key.
    """

    def __init__(
        self,
        keys: list[Key],
        clock: Callable[[], float] = time.monotonic,
        bucket: Callable[[int], Bucket] = lambda number: OwnBucket(),
    ) -> None:
        self._keys = keys
        self._quotas = {
            key.sha256: Quota(key.per_second, key.burst, clock, bucket(number))
            for number, key in enumerate(keys)
            if key.per_second is not None
        }

    def check(self, scope: Scope) -> None:
        """Let a request pass, with what its key may in the scope as `may`.

        Raises:
            Unauthorized, Forbidden, RateLimited: not let in.
        """
        if scope["path"] in OPEN:
            return
        key = self._key_of(scope)
        group: Group = "metrics" if scope["path"] == "/metrics" else "segment"
        if group not in key.may:
            raise Forbidden(f"this key is not for '{group}'; it is for {', '.join(sorted(key.may))}")
        if scope["method"] == "POST" and key.sha256 in self._quotas:
            wait = self._quotas[key.sha256].take()
            if wait:
                raise RateLimited(f"the quota of this key is {key.per_second:g} requests a second", wait)
        scope["may"] = key.may

    def _key_of(self, scope: Scope) -> Key:
        sent = _values(scope, b"authorization")
        if len(sent) != 1:
            raise Unauthorized(
                "keys are configured here; send one 'Authorization: Bearer <key>', or in a browser the key as password"
            )
        scheme, _, secret = sent[0].partition(b" ")
        if scheme.lower() == b"basic":
            secret = _password(secret)
            _must_be_from_here(scope)
        found = hashlib.sha256(secret.strip()).hexdigest()
        matches = [key for key in self._keys if hmac.compare_digest(key.sha256, found)]
        if scheme.lower() not in (b"bearer", b"basic") or not matches:
            raise Unauthorized("this key is not known here")
        return matches[0]


def _password(credentials: bytes) -> bytes:
    """Of `base64(name:password)`; of anything else one that is no key."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _must_be_from_here(scope: Scope) -> None:
    """
    Raises:
        Forbidden: a page of another site had the browser send this.
    """
    hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
    if scope["method"] not in ("GET", "HEAD") and any(origin.partition(b"://")[2] not in hosts for origin in origins):
        raise Forbidden(
            "a page of another site sent this with your password; programs send 'Authorization: Bearer <key>', and a "
            "proxy before this server should pass Host on as it is"
        )


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for header, value in scope["headers"] if header == name]
