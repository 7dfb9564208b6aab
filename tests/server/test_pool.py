"""The whole robustness pool posted to one running server: each file as its manifest says, and the server stays well."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.shared_data import shared
from training.nuclei.server_process import serve

CODES = {
    "not_an_image": "bad_image",
    "empty": "bad_image",
    "corrupt": "bad_image",
    "invalid_dimensions": "bad_image",
    "truncated": "truncated_image",
    "too_many_pixels": "image_too_large",
    "too_large": "image_too_large",
    "unsupported_format": "unsupported_media",
    "unsupported_pixel_type": "unsupported_media",
}
STATUS = {"bad_image": 400, "truncated_image": 400, "image_too_large": 413, "unsupported_media": 415}
KEPT = 1.02  # memory after a time through the pool, over the higher of the two before it: a leak adds every time
TIMES = 8  # at most: what the allocators keep comes in a few steps of up to a tenth, and then no more


@pytest.fixture(scope="module")
def port(tiny_bundle: Path) -> Iterator[int]:
    # one thread, as which of several takes a picture is chance, and each keeps memory of its own for the next one
    with serve(tiny_bundle.parent.parent, "--workers", "1", "--threads", "1") as started:
        yield started


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def resident_mb(port: int) -> float:
    text = ask(port, "GET", "/metrics")[1].decode()
    found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
    assert found, "this platform does not tell the memory of a process"
    return float(found.group(1)) / 1e6


def complaint(entry: dict[str, Any], status: int, answer: dict[str, Any]) -> str | None:
    """What is wrong with an answer, in a line; None when it is as the manifest says."""
    decoded = status == 200
    if decoded:
        size = [answer["image"]["width"], answer["image"]["height"]]
        if entry["expect"] != "decode" and entry["strict"]:
            return f"answered, but should be refused as {entry['reason']}"
        if entry["expect"] == "decode" and size != entry["expected_size"]:
            return f"size {size}, should be {entry['expected_size']}"
        return None
    code = answer.get("code")
    if STATUS.get(str(code)) != status:
        return f"status {status} with code {code}"
    if entry["expect"] == "decode":
        return f"refused as {code}, but should be answered" if entry["strict"] else None
    if entry["strict"] and code != CODES[entry["reason"]]:
        return f"refused as {code}, should be {CODES[entry['reason']]}"
    return None


@pytest.mark.slow
def test_every_file_of_the_pool_behaves_and_the_memory_comes_back(port: int) -> None:
    folder = shared("data/images")
    entries = json.loads((folder / "manifest.json").read_text())["files"]
    complaints = []
    for entry in entries:
        status, body = ask(port, "POST", "/v1/segment?masks=none", (folder / entry["file"]).read_bytes())
        wrong = complaint(entry, status, json.loads(body))
        if wrong:
            complaints.append(f"{entry['file']}: {wrong}")
        assert ask(port, "GET", "/readyz")[0] == 200
    assert not complaints, "\n".join(complaints)
    assert len(entries) == 150
    # the engine keeps the memory of ordinary runs (docs/decisions/0003), and the allocator more or less
    resident = [resident_mb(port)]
    while len(resident) < 3 or (resident[-1] >= max(resident[-3:-1]) * KEPT and len(resident) < TIMES):
        for entry in entries:
            ask(port, "POST", "/v1/segment?masks=none", (folder / entry["file"]).read_bytes())
        resident.append(resident_mb(port))
    assert resident[-1] < max(resident[-3:-1]) * KEPT, resident
