"""Running the load tester as its command line does, and reading its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtest.__main__ import main


@dataclass(frozen=True, slots=True)
class Tested:
    code: int
    report: dict[str, Any]
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        return dict(self.report["result"])

    @property
    def failures(self) -> dict[str, int]:
        return {failure["kind"]: failure["count"] for failure in self.result["failures"]}


LoadTest = Callable[..., Tested]


@pytest.fixture
def loadtest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> LoadTest:
    """`loadtest(url, "--rate", 20, ...)`, with one tiny picture unless told otherwise."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"a picture, for all the fake cares")

    def run(*words: object) -> Tested:
        json_out = tmp_path / "report.json"
        json_out.unlink(missing_ok=True)
        given = [str(word) for word in words]
        images = [] if "--images" in given else ["--images", str(pictures)]
        code = main([*given, *images, "--json", str(json_out)])
        said = capsys.readouterr()
        report = json.loads(json_out.read_bytes()) if json_out.exists() else {}
        return Tested(code, report, said.out, said.err)

    return run
