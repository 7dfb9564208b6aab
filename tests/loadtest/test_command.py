"""The command line as a person meets it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest import pictures
from loadtest.errors import CannotRun
from loadtest.options import read_options
from loadtest.pictures import find_pictures
from loadtest.target import parse_target
from tests.conftest import ROOT
from tests.loadtest.conftest import LoadTest
from tests.loadtest.fake import fake


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_help_teaches_every_option() -> None:
    done = run_command("--help")
    assert done.returncode == 0
    for flag in ("--rate", "--concurrency", "--find-max", "--tune", "--trace", "--ramp", "--html", "MASKSERVE_API_KEY"):
        assert flag in done.stdout
    assert "Exit code: 0 fine, 1" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rate", "5", "--concurrency", "2"], "choose one"),
        (["--find-max"], "--p99-ms 250"),
        (["--tune", "x {port}"], "--p99-ms 250"),
        (["--find-max", "--p99-ms", "9", "--rate", "5"], "leave --rate out"),
    ],
)
def test_options_that_contradict_each_other_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(CannotRun, match=re.escape(says)):
        read_options(words)


@pytest.mark.parametrize(
    "words", [["--rate", "0"], ["--rate", "nan"], ["--duration", "soon"], ["--ramp", "5"], ["--max-requests", "0.5"]]
)
def test_a_number_that_is_none_is_refused_with_its_flag(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options(words)
    assert ended.value.code == 2
    assert f"argument {words[0]}: " in capsys.readouterr().err


def test_without_a_load_eight_clients_ask() -> None:
    options = read_options([])
    assert (options.mode, options.clients, options.url) == ("closed", 8, "http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("127.0.0.1:9000", "http://127.0.0.1:9000", "/v1/segment"),
        ("https://cells.example/", "https://cells.example", "/v1/segment"),
        ("http://[::1]:8000/v1/models/a/segment?masks=png", "http://[::1]:8000", "/v1/models/a/segment?masks=png"),
    ],
)
def test_an_address_may_leave_out_what_goes_without_saying(url: str, origin: str, path: str) -> None:
    target = parse_target(url, [], None)
    assert (target.origin, target.path) == (origin, path)


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a:port", "http://me:secret@a"])
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(CannotRun):
        parse_target(url, [], None)


def test_a_key_from_the_environment_yields_to_a_header_and_is_not_shown() -> None:
    target = parse_target("a", ["authorization: Basic x", "X-Trace: 1"], "s3cret")
    assert b"s3cret" not in target.post(b"")
    assert b"X-Trace: 1\r\n" in target.post(b"")
    assert "Basic" not in repr(target)
    with pytest.raises(CannotRun, match="Name: value"):
        parse_target("a", ["no colon"], None)


def test_the_pictures_are_the_samples_or_a_painted_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, said = find_pictures(None)
    assert found[0].name == "nuclei.png"
    assert said.startswith("docs/samples")
    monkeypatch.setattr(pictures, "SAMPLES", tmp_path)
    painted, said = find_pictures(None)
    assert painted[0].payload.startswith(b"\xff\xd8\xff")
    assert "painted" in said
    with pytest.raises(CannotRun, match="no picture in"):
        find_pictures(tmp_path)


def test_a_folder_of_pictures_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("b/c.JPG", "a.png", "d.tif", ".hidden.png", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345678")
    assert [picture.name for picture in find_pictures(tmp_path)[0]] == ["a.png", "b/c.JPG", "d.tif"]
    assert [picture.name for picture in find_pictures(tmp_path / "d.tif")[0]] == ["d.tif"]
    monkeypatch.setattr(pictures, "MAX_BYTES", 20)
    found, said = find_pictures(tmp_path)
    assert len(found) == 2
    assert "the first 2 of 3" in said


@pytest.mark.parametrize("load", [["--rate", "50"], ["--concurrency", "3"]])
def test_ctrl_c_reports_what_was_measured(load: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with fake(latencies_ms=[20], solo=5) as url:
        command = [sys.executable, "-m", "loadtest", url, *load, "--warmup", "0", "--duration", "60"]
        with subprocess.Popen(
            [*command, "--json", str(report)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert "target" in process.stderr.readline()
            assert "alone" in process.stderr.readline()
            time.sleep(0.6)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=20)
    result = json.loads(report.read_bytes())["result"]
    assert process.returncode == 130
    assert "stopped before the end" in out
    assert result["good"] >= 8
    assert result["window_s"] < 10


def test_ctrl_c_ends_a_search(tmp_path: Path) -> None:
    with fake(latencies_ms=[20], solo=5) as url:
        command = [sys.executable, "-m", "loadtest", url, "--find-max", "--p99-ms", "500"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            process.stderr.readline()
            process.stderr.readline()
            time.sleep(0.4)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped before" in out


def test_a_folder_that_is_not_there_is_told_before_the_load(loadtest: LoadTest) -> None:
    tested = loadtest("127.0.0.1:1", "--html", "no/such/folder/report.html")
    assert tested.code == 2
    assert "there is no folder" in tested.err
