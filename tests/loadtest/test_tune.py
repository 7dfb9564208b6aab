"""Tuning: the search over settings, and the servers it starts and ends."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from loadtest.errors import CannotRun
from loadtest.tune import Settings, Trial, Tuned, env_file, read_knobs, server, tune
from tests.loadtest.conftest import LoadTest

KNOBS = {"A": ["1", "2"], "B": ["x", "y"]}
FAKE = f"{sys.executable} -m tests.loadtest.fake {{port}}"


def tuned(rates: dict[tuple[str, ...], float], margin: float = 0.05) -> Tuned:
    """Over a table of rates: settings, in order -> images/s."""

    async def measure(settings: Settings) -> Trial:
        return Trial(settings, rates.get(tuple(f"{name}{value}" for name, value in settings.items()), 10.0), None)

    found = asyncio.run(tune(measure, KNOBS, margin))
    assert found is not None
    return found


def test_each_knob_is_turned_with_the_others_at_their_best() -> None:
    found = tuned({("A2",): 20.0, ("A2", "By"): 30.0, ("By",): 99.0})
    assert found.best.settings == {"A": "2", "B": "y"}
    assert [trial.settings for trial in found.trials] == [
        {},
        {"A": "1"},
        {"A": "2"},
        {"A": "2", "B": "x"},
        {"A": "2", "B": "y"},
    ]


def test_a_win_within_the_uncertainty_changes_nothing() -> None:
    found = tuned({("A2",): 10.4, ("Bx",): 10.3})
    assert found.best.settings == {}
    assert "so nothing is set" in env_file(found, "99 % within 9 ms")


def test_the_file_of_settings_can_be_read_by_a_shell() -> None:
    found = tuned({("A2",): 20.0})
    lines = env_file(found, "99 % within 9 ms").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["A=2"]
    assert "99 % within 9 ms" in lines[0]


def test_knobs_are_read_from_the_command_line() -> None:
    assert read_knobs(["MASKSERVE_MAX_BATCH=1,4", "B=x"]) == {"MASKSERVE_MAX_BATCH": ["1", "4"], "B": ["x"]}
    assert "MASKSERVE_MAX_BATCH" in read_knobs([])
    for wrong in ("MASKSERVE_MAX_BATCH", "A B=1", "A="):
        with pytest.raises(CannotRun, match="--try"):
            read_knobs([wrong])


def is_alive(pid: str) -> bool:
    """A process that has ended stays in the table until its parent asks, as Z."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


STUBBORN = """
import os, pathlib, subprocess, sys, time
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"
child = subprocess.Popen([sys.executable, "-c", deaf])
pathlib.Path(sys.argv[2]).write_text(f"{os.getpid()} {child.pid} {os.environ['A']}")
time.sleep(99)
"""


def test_a_server_and_what_it_started_end_with_the_block(tmp_path: Path) -> None:
    script, pids = tmp_path / "stubborn.py", tmp_path / "pids"
    script.write_text(STUBBORN)

    async def story() -> None:
        async with server(f"{sys.executable} {script} {{port}} {pids}", {"A": "7"}, None):
            for _ in range(1000):
                if pids.exists() and pids.read_text():
                    return
                await asyncio.sleep(0.01)

    asyncio.run(story())
    parent, child, setting = pids.read_text().split()
    assert setting == "7"
    until = time.monotonic() + 5
    while is_alive(parent) or is_alive(child):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(("command", "says"), [("sleep 1", "{port}"), ("no/such/program {port}", "cannot start")])
def test_a_command_that_cannot_work_is_refused(command: str, says: str, loadtest: LoadTest) -> None:
    tested = loadtest("--tune", command, "--p99-ms", 100)
    assert tested.code == 2
    assert says in tested.err


def test_a_server_that_does_not_start_is_a_trial_that_failed(loadtest: LoadTest) -> None:
    command = f'{sys.executable} -c "raise SystemExit(3)" {{port}}'
    tested = loadtest("--tune", command, "--p99-ms", 100, "--try", "A=1", "--wait-s", 20)
    assert tested.code == 1
    assert [trial["rate"] for trial in tested.report["tuning"]["trials"]] == [0, 0]
    assert "ended with 3" in tested.out
    assert "--server-log" in tested.err


@pytest.mark.proof
def test_the_setting_that_makes_a_server_fast_is_found(loadtest: LoadTest, tmp_path: Path) -> None:
    env = tmp_path / "best.env"
    command = f"{FAKE} '{{\"service_ms\": 25}}'"
    words = ("--p99-ms", 150, "--try", "FAKE_SERVICE_MS=8", "--duration", 1, "--warmup", 0.2, "--precision", 15)
    tested = loadtest("--tune", command, *words, "--env-out", env)
    assert tested.code == 0
    assert tested.report["tuning"]["best"]["settings"] == {"FAKE_SERVICE_MS": "8"}
    assert "FAKE_SERVICE_MS=8" in env.read_text().splitlines()
    assert "-> " in tested.out
