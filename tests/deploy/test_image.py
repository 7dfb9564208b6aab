"""The Dockerfile: linted everywhere; built, run and stopped for real where buildah and podman are."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pycocotools import mask

from tests.conftest import ROOT
from tests.deploy.clients import answers, ask, ask_json, free_port
from tests.deploy.containers import Containers, wait_for

SAMPLE = (ROOT / "docs/samples/nuclei.png").read_bytes()
LOCKED_DOWN = [
    "--read-only",
    "--cap-drop",
    "all",
    "--security-opt",
    "no-new-privileges",
    "--memory",
    "1g",
    "--cpus",
    "1",
]
LARGEST_MB = 450


def test_the_dockerfile_passes_hadolint() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_gpu_target_differs_from_the_cpu_target_in_its_dependencies_only() -> None:
    stages = (ROOT / "Dockerfile").read_text(encoding="utf-8").split("\nFROM ")
    gpu, cpu = (next(stage for stage in stages if f" AS {name}\n" in stage) for name in ("gpu", "cpu"))
    assert gpu.replace("gpu", "cpu").split() == cpu.split()


@pytest.fixture(scope="module")
def running(engine: Containers, image: str) -> Iterator[tuple[str, int]]:
    """A container's name and the port of the server in it."""
    port = free_port()
    engine.podman("run", "--detach", "--name", "locked-down", "-p", f"127.0.0.1:{port}:8000", *LOCKED_DOWN, image)
    wait_for("/readyz", lambda: answers(port, "/readyz"))
    yield "locked-down", port
    engine.podman("rm", "--force", "--time", "2", "locked-down")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_image_is_small(engine: Containers, base: str, image: str) -> None:
    whole, below = engine.size_mb(image), engine.size_mb(base)
    print(f"the cpu image has {whole:.0f} MB, of which {below:.0f} MB are the stand-in for {base}")
    assert whole <= LARGEST_MB


@pytest.mark.slow
def test_the_image_says_what_it_is(engine: Containers, image: str) -> None:
    labels = engine.inspect(image, ".Config.Labels")
    assert labels["org.opencontainers.image.title"] == "maskserve"
    assert labels["org.opencontainers.image.revision"] == "test"
    assert engine.inspect(image, ".Config.User") == "10001:10001"


@pytest.mark.slow
def test_a_container_without_rights_answers(engine: Containers, running: tuple[str, int]) -> None:
    _, port = running
    answer = ask_json(port, "/v1/segment", SAMPLE)
    assert len(answer["instances"]) > 50
    for instance in answer["instances"]:
        assert mask.decode(instance["segmentation"]).sum() == instance["area"]


@pytest.mark.slow
def test_the_container_is_not_root_and_cannot_write(engine: Containers, running: tuple[str, int]) -> None:
    name, _ = running
    assert engine.podman("exec", name, "id", "-u") == "10001"
    with pytest.raises(AssertionError, match="Read-only file system"):
        engine.podman("exec", name, "touch", "/app/here")


@pytest.mark.slow
def test_the_server_sees_the_cores_it_was_given(engine: Containers, running: tuple[str, int]) -> None:
    name, _ = running
    assert engine.podman("exec", name, "python", "-c", "from server.cores import usable_cores as n; print(n())") == "1"


@pytest.mark.slow
@pytest.mark.parametrize("program", ["pip", "gcc", "strip"])
def test_nothing_that_builds_is_in_the_environment(engine: Containers, running: tuple[str, int], program: str) -> None:
    name, _ = running
    found = engine.podman("exec", name, "sh", "-c", f"command -v {program} || true")
    assert found in ("", f"/usr/local/bin/{program}")  # the official Python image brings its own pip


@pytest.mark.slow
def test_the_healthcheck_tells_ready_from_gone(engine: Containers, running: tuple[str, int]) -> None:
    name, _ = running
    engine.podman("healthcheck", "run", name)
    with pytest.raises(AssertionError, match="no answer on port 1"):
        engine.podman("exec", "--env", "MASKSERVE_PORT=1", name, "python", "-m", "server.healthcheck")


@pytest.mark.slow
def test_sigterm_while_busy_loses_nothing_and_ends_with_zero(engine: Containers, image: str) -> None:
    port = free_port()
    patient = ["--env", "MASKSERVE_MAX_WAIT_MS=30000"]
    engine.podman("run", "--detach", "--name", "busy", "-p", f"127.0.0.1:{port}:8000", *LOCKED_DOWN, *patient, image)
    wait_for("/readyz", lambda: answers(port, "/readyz"))
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, port, "/v1/segment", SAMPLE) for _ in range(8)]
        time.sleep(0.5)
        waiting = sum(not one.done() for one in asked)
        engine.podman("stop", "--time", "30", "busy")
        statuses = [one.result()[0] for one in asked]
    assert waiting, "all were answered before the signal: nothing was shown"
    assert statuses == [200] * 8
    assert engine.inspect("busy", ".State.ExitCode") == 0
    engine.podman("rm", "busy")
