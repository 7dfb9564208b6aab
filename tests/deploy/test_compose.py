"""docker-compose.yml: held against the specification, and brought up as far as a machine without a registry can.

Prometheus is Debian's program in an image of the right name: what is proven is that it finds the server by its service
name and reads our configuration and rules, not the release that docker-compose.yml names. Grafana cannot be stood in
for.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from server.settings import Settings
from tests.conftest import ROOT
from tests.deploy.clients import answers, ask, ask_json, free_port
from tests.deploy.containers import Containers, wait_for
from tests.tools import tool

COMPOSE = ROOT / "docker-compose.yml"
FILES = [COMPOSE, ROOT / "docker-compose.gpu.yml"]
SAMPLE = (ROOT / "docs/samples/nuclei.png").read_bytes()


def checked(path: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [program, "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_compose_file_obeys_the_specification(path: Path) -> None:
    done = checked(path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_specification_notices_a_misspelt_key(tmp_path: Path) -> None:
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(COMPOSE.read_text(encoding="utf-8").replace("read_only:", "read_olny:"), encoding="utf-8")
    assert checked(broken).returncode != 0


def test_yaml_files_pass_yamllint() -> None:
    command = [str(Path(sys.executable).with_name("yamllint")), "--strict", *map(str, FILES), "monitoring"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", ["server", "prometheus", "grafana"])
def test_everything_is_published_on_this_machine_only(service: str) -> None:
    ports = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"][service]["ports"]
    assert all(port.startswith("${MASKSERVE_PUBLISH:-127.0.0.1}:") for port in ports)


def test_every_mounted_file_is_there() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    mounted = [volume for service in services.values() for volume in service.get("volumes", ())]
    files = [volume.split(":")[0] for volume in mounted if volume.startswith("./")]
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_docker_waits_longer_than_the_server_drains() -> None:
    grace = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["server"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > Settings.model_fields["drain_s"].default


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compose_brings_up_a_server_that_prometheus_finds(
    engine: Containers, base: str, image: str, tmp_path: Path
) -> None:
    stand_in_for_prometheus(engine, base, tmp_path)
    server, prometheus = free_port(), free_port()
    told = {"MASKSERVE_PUBLISH_PORT": str(server), "PROMETHEUS_PUBLISH_PORT": str(prometheus), "GRAFANA_PASSWORD": "x"}
    try:
        engine.compose(COMPOSE, told, "up", "--detach", "--no-build", "server", "prometheus")
        wait_for("the server", lambda: answers(server, "/readyz"))
        wait_for("Prometheus", lambda: answers(prometheus, "/-/ready"))
        count = len(ask_json(server, "/v1/segment", SAMPLE)["instances"])
        assert count > 50
        wait_for("the answered picture", lambda: value(prometheus, 'seg_images_total{model="nuclei"}') == 1.0, 30)
        assert value(prometheus, 'up{job="maskserve"}') == 1.0
        rules = ask_json(prometheus, "/api/v1/rules")["data"]["groups"]
        assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
    finally:
        engine.compose(COMPOSE, told, "down", "--volumes")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_load_profile_drives_the_server(engine: Containers, image: str) -> None:
    server = free_port()
    told = {"MASKSERVE_PUBLISH_PORT": str(server), "GRAFANA_PASSWORD": "x", "LOAD_RATE": "2", "LOAD_DURATION_S": "3"}
    try:
        engine.compose(COMPOSE, told, "up", "--detach", "--no-build", "server")
        wait_for("the server", lambda: answers(server, "/readyz"))
        engine.compose(COMPOSE, told, "--profile", "load", "run", "--rm", "--no-deps", "load")
        metrics = ask(server, "/metrics")[1].decode()
        images = re.search(r'(?m)^seg_images_total\{model="nuclei",version="1"\} (\S+)', metrics)
        assert images is not None
        assert float(images[1]) >= 3
    finally:
        engine.compose(COMPOSE, told, "down", "--volumes")


def stand_in_for_prometheus(engine: Containers, base: str, folder: Path) -> None:
    """An image of the name in docker-compose.yml with Debian's Prometheus where the official one has its own."""
    tag = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["prometheus"]["image"]
    shutil.copy(tool("prometheus"), folder / "prometheus")
    (folder / "Dockerfile").write_text(
        f"FROM {base}\nCOPY prometheus /bin/prometheus\nRUN mkdir /prometheus && chown nobody /prometheus\n"
        'USER nobody\nENTRYPOINT ["/bin/prometheus"]\n'
    )
    engine.build(folder, tag)


def value(port: int, query: str) -> float | None:
    """What Prometheus says of a query with one series; None while it has none."""
    result = ask_json(port, f"/api/v1/query?query={quote(query)}")["data"]["result"]
    return float(result[0]["value"][1]) if result else None
