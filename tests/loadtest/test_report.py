"""What is written: JSON that parses, and a page that needs nothing but itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from loadtest.report import write_page
from tests.loadtest.conftest import LoadTest
from tests.loadtest.fake import fake

NO_WARMUP = ("--warmup", 0)


def document_in(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


@pytest.fixture
def page(loadtest: LoadTest, tmp_path: Path) -> Path:
    """The page of a short run with everything in it: a promise, errors, wrong answers."""
    path = tmp_path / "report.html"
    with fake(latencies_ms=[5, 9, 20], solo=5, refuse_every=20, miscount_every=30) as url:
        loadtest(url, "--rate", 100, "--duration", 1, "--warmup", 0.5, "--p99-ms", 15, "--html", path)
    return path


def test_the_page_holds_the_report_and_asks_nobody_for_anything(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert document_in(text) == report
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {report["target"]}
    assert "default-src 'none'" in text
    assert not re.search(r"\b(src|href)=|@import|url\(|fetch\(|XMLHttpRequest", text)
    # Neither this machine's name nor its folders are in it, but for the one of the pictures.
    del report["pictures"]
    assert str(tmp_path) not in json.dumps(report)
    assert set(report["machine"]) == {"processor", "cores", "system", "python"}


def test_an_error_text_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    nasty = "</script><script>alert(1)</script><!--"
    write_page({"load": nasty}, path)
    assert path.read_text().count("</script>") == 2
    assert document_in(path.read_text()) == {"load": nasty}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="looks at the page with chromium")
@pytest.mark.parametrize("kind", ["run", "search", "tuning", "nothing"])
def test_a_browser_draws_the_page(kind: str, page: Path, tmp_path: Path) -> None:
    report = document_in(page.read_text())
    step: dict[str, object] = {
        "rate": 9.0,
        "held": True,
        "confirming": True,
        "seconds": 6.0,
        "gave_up": False,
        "throughput_per_s": 9.0,
    }
    step |= {"p50_ms": 4.0, "p99_ms": 9.0, "within_percent": 100.0, "error_percent": 0.0, "errors": {"timeout": 1}}
    trial = {"settings": {"MASKSERVE_MAX_BATCH": "4"}, "rate": 9.0, "p99_ms": 9.0, "why": ""}
    wanted = {
        "run": 'class="line p99"',
        "search": "confirming",
        "tuning": "MASKSERVE_MAX_BATCH=4",
        "nothing": "<dt>load",
    }
    if kind == "search":
        report["search"] = {"rate": 9.0, "confirmed": True, "steps": [step]}
    if kind == "tuning":
        report["tuning"] = {"best": trial, "trials": [trial]}
    if kind in ("tuning", "nothing"):
        del report["result"], report["curve"], report["points"]
    write_page(report, page)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert wanted[kind] in done.stdout
    assert "<dt>machine" in done.stdout  # the last thing drawn
    assert "Uncaught" not in done.stderr


def test_the_text_report_says_what_matters(loadtest: LoadTest) -> None:
    with fake(latencies_ms=[20], solo=5, refuse_every=20) as url:
        tested = loadtest(url, "--rate", 100, "--duration", 0.5, *NO_WARMUP, "--p99-ms", 500)
    for words in ("Poisson arrivals, 100/s", "p99.9", "503 overloaded", "overloaded, says the fake", "inference 2.0"):
        assert words in tested.out
    assert "promise      BROKEN" in tested.out
    assert "shorter than three seconds" in tested.out
    assert "target http://127.0.0.1" in tested.err
