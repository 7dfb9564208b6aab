"""A real Chromium without a window, driven over the WebDriver protocol (https://www.w3.org/TR/webdriver2/).

chromedriver speaks plain HTTP and JSON, so the standard library is enough.

    with browser(width=1200, height=900) as tab:
        tab.open("http://127.0.0.1:8000/")
        tab.run("return document.title")
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key under which the protocol hands over an element

KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "End": "\ue010", "Home": "\ue011", "Space": " "}
KEYS |= {"ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015"}

# Without a sandbox because tests may run as root; the rest keeps the browser from asking its maker's servers.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def need_chromium() -> tuple[str, str]:
    """Paths of Chromium and its driver; without them the test that asks is skipped, or failed where `CI` is `true`."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium and driver:
        return chromium, driver
    reason = "no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; CI must have them", pytrace=False)
    pytest.skip(reason)


@contextmanager
def browser(width: int = 1280, height: int = 900, downloads: Path | None = None) -> Iterator[Tab]:
    """One tab of a new browser, gone at the end of the block."""
    chromium, driver = need_chromium()
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, "chromedriver ended"
            found = re.search(r"started successfully on port (\d+)", line)
        options = {
            "binary": chromium,
            "args": [*FLAGS, f"--window-size={width},{height}"],
            "prefs": {"download.default_directory": str(downloads)} if downloads else {},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        root = f"http://127.0.0.1:{found[1]}/session"
        session = _call("POST", root, {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        try:
            yield Tab(f"{root}/{session}")
        finally:
            _call("DELETE", f"{root}/{session}")
    finally:
        process.terminate()
        process.communicate(timeout=30)


class Tab:
    def __init__(self, address: str) -> None:
        self._address = address

    def open(self, url: str) -> None:
        self._post("url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript as the body of a function; a promise is waited for."""
        return self._post("execute/sync", {"script": script, "args": arguments})

    def wait(self, condition: str, *arguments: Any, patience_s: float = 20.0) -> Any:
        """Until a JavaScript expression is true."""
        until = time.monotonic() + patience_s
        while not (value := self.run(f"return {condition}", *arguments)):
            assert time.monotonic() < until, f"waited in vain for {condition}"
            time.sleep(0.03)
        return value

    def click(self, selector: str) -> None:
        self._post(f"element/{self._find(selector)}/click", {})

    def upload(self, selector: str, path: Path) -> None:
        self._post(f"element/{self._find(selector)}/value", {"text": str(path)})

    def press(self, *names: str) -> None:
        """Keys, one after the other, to whatever has the focus; a name from `KEYS` or a character."""
        strokes = [{"type": kind, "value": KEYS.get(name, name)} for name in names for kind in ("keyDown", "keyUp")]
        self._post("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a point of the window, in CSS pixels."""
        move = {"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}
        self._post("actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._post("goog/cdp/execute", {"cmd": name, "params": parameters})

    def screenshot(self) -> bytes:
        return base64.b64decode(_call("GET", f"{self._address}/screenshot"))

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What has come since the last call, of `browser` (the console) or `performance` (DevTools events)."""
        entries: list[dict[str, Any]] = self._post("se/log", {"type": kind})
        return entries

    def requested(self) -> list[str]:
        """Addresses the page asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def _find(self, selector: str) -> str:
        return str(self._post("element", {"using": "css selector", "value": selector})[ELEMENT])

    def _post(self, path: str, content: dict[str, Any]) -> Any:
        return _call("POST", f"{self._address}/{path}", content)


def _call(method: str, url: str, content: dict[str, Any] | None = None) -> Any:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        with error:
            value = json.load(error)["value"]
        raise RuntimeError(f"{value['error']}: {value['message']}") from None
