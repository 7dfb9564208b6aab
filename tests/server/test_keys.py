"""Keys: who is let in, and how often."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadKeys, Forbidden, RateLimited, RequestError, Unauthorized
from server.http.keys import Guard, Key, Quota, read_keys

SECRET = "s3cret"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key(**changes: object) -> Key:
    return Key.model_validate({"name": "a", "sha256": sha256(SECRET), "may": ["segment"]} | changes)


def ask(
    guard_keys: list[Key],
    path: str = "/v1/segment",
    headers: list | None = None,
    times: int = 1,
    method: str = "POST",
) -> int:
    """How many of `times` requests at one moment pass: all, or it raises."""
    guard = Guard(guard_keys, clock=lambda: 0.0)
    sent = [(b"authorization", f"Bearer {SECRET}".encode())] if headers is None else headers
    for _ in range(times):
        guard.check({"type": "http", "method": method, "path": path, "headers": sent})
    return times


def test_a_good_key_passes() -> None:
    assert ask([key()]) == 1
    assert ask([key()], headers=[(b"authorization", b"bearer " + SECRET.encode())]) == 1


def password(text: str, name: str = "anybody") -> tuple[bytes, bytes]:
    return b"authorization", b"Basic " + base64.b64encode(f"{name}:{text}".encode())


@pytest.mark.parametrize("name", ["", "anybody", "jürgen"])
def test_a_key_may_come_as_a_password(name: str) -> None:
    assert ask([key()], headers=[password(SECRET, name)]) == 1
    colons = key(sha256=sha256("a:b:"))
    assert ask([colons], headers=[password("a:b:", name)]) == 1


HERE = (b"host", b"masks.example:8000")


@pytest.mark.parametrize("origin", [b"https://masks.example:8000", b"http://masks.example:8000"])
def test_a_page_of_this_server_may_send_pictures_with_a_password(origin: bytes) -> None:
    assert ask([key()], headers=[HERE, (b"origin", origin), password(SECRET)]) == 1


@pytest.mark.parametrize(
    "origin",
    [
        b"https://evil.example",
        b"http://masks.example",
        b"null",
        b"",
        b"http://masks.example:8000.evil.example",
        b"http://[",
    ],
)
def test_a_page_of_another_site_may_not(origin: bytes) -> None:
    headers = [HERE, (b"origin", origin)]
    with pytest.raises(Forbidden, match="another site"):
        ask([key()], headers=[*headers, password(SECRET)])
    assert ask([key()], headers=[*headers, (b"authorization", f"Bearer {SECRET}".encode())]) == 1
    assert ask([key()], "/", headers=[*headers, password(SECRET)], method="GET") == 1


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Basic " + base64.b64encode(SECRET.encode()))],
        [(b"authorization", b"Basic " + base64.b64encode(f"{SECRET}:".encode()))],
        [(b"authorization", b"Basic &&&")],
        [(b"authorization", b"Bearer " + base64.b64encode(f"a:{SECRET}".encode()))],
        [(b"authorization", b"Basic " + SECRET.encode())],
        [(b"authorization", SECRET.encode())],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer " + SECRET.encode())] * 2,
        [(b"x-api-key", SECRET.encode())],
    ],
)
@pytest.mark.parametrize("path", ["/v1/segment", "/v1/models", "/", "/metrics", "//v1//segment", "/openapi.json"])
def test_no_key_and_a_wrong_key_are_refused_everywhere(headers: list, path: str) -> None:
    with pytest.raises(Unauthorized):
        ask([key(may=["segment", "metrics"])], path, headers)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_stays_open(path: str) -> None:
    assert ask([key()], path, headers=[]) == 1


@pytest.mark.parametrize(("may", "path"), [(["segment"], "/metrics"), (["metrics"], "/v1/segment")])
def test_metrics_are_a_group_of_their_own(may: list[str], path: str) -> None:
    with pytest.raises(Forbidden):
        ask([key(may=may)], path)


def test_a_burst_passes_and_the_next_is_told_when_to_come_back() -> None:
    quoted = key(per_second=2, burst=3)
    assert ask([quoted], times=3) == 3
    with pytest.raises(RateLimited) as caught:
        ask([quoted], times=4)
    assert isinstance(caught.value, RequestError)
    assert caught.value.retry_after_s == pytest.approx(0.5)


@given(gaps=st.lists(st.floats(0, 3), min_size=1, max_size=50), per_second=st.floats(0.1, 10), burst=st.integers(1, 5))
def test_a_quota_never_lets_more_pass_than_it_says(gaps: list[float], per_second: float, burst: int) -> None:
    now = [0.0]
    quota = Quota(per_second, burst, lambda: now[0])
    passed = 0
    for gap in gaps:
        now[0] += gap
        passed += quota.take() == 0.0
        assert passed <= burst + now[0] * per_second + 1e-6


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"keys": []}',
        json.dumps({"keys": [{"name": "a", "sha256": "short", "may": ["segment"]}]}),
        json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "may": ["everything"]}]}),
        json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "may": ["segment"], "key": "plain"}]}),
        json.dumps({"keys": [{"name": n, "sha256": "0" * 64, "may": ["segment"]} for n in "ab"]}),
    ],
)
def test_a_wrong_file_stops_the_start_and_tells_no_secret(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(BadKeys) as caught:
        read_keys(path)
    assert "plain" not in str(caught.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadKeys, match="cannot read"):
        read_keys(tmp_path / "none.json")
