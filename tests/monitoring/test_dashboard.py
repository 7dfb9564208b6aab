"""The dashboard's file: what a person needs on every panel is there, and Grafana's own types accept it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.monitoring.dashboard import DASHBOARD, GPU_ROW, PATH, panels, queries_of, rows
from tests.monitoring.stack import MONITORING
from tests.tools import tool

SCHEMA = Path(__file__).parent / "grafana_schema"
PANELS = list(panels())


def everything() -> list[dict]:
    return [*rows(), *PANELS]


def test_every_panel_has_a_number_of_its_own() -> None:
    assert max(Counter(panel["id"] for panel in everything()).values()) == 1


def test_every_panel_has_a_title_of_its_own() -> None:
    assert max(Counter(panel["title"] for panel in everything()).values()) == 1


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_explains_itself_and_names_its_unit(panel: dict) -> None:
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(query.legend or panel["type"] == "table" for query in queries_of(panel))


def test_no_panel_lies_on_another_or_outside_the_grid() -> None:
    cells: Counter[tuple[int, int]] = Counter()
    for panel in everything():
        box = panel["gridPos"]
        assert 0 <= box["x"] < box["x"] + box["w"] <= 24, panel["title"]
        cells.update((x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"]))
    assert max(cells.values()) == 1


def test_the_rows_are_those_of_the_issue_and_only_the_gpu_is_folded() -> None:
    assert [row["title"] for row in rows()] == ["Traffic", "Latency", "Engine", "Refusals", "Process", GPU_ROW]
    assert [row["title"] for row in rows() if row["collapsed"]] == [GPU_ROW]


def test_it_looks_at_the_last_quarter_of_an_hour_every_five_seconds() -> None:
    assert DASHBOARD["refresh"] == "5s"
    assert DASHBOARD["time"] == {"from": "now-15m", "to": "now"}


def test_model_and_version_can_be_chosen_and_all_means_the_nameless_too() -> None:
    variables = {entry["name"]: entry for entry in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "model", "version"}
    assert {variables[name]["allValue"] for name in ("model", "version")} == {".*"}


def test_every_query_about_models_obeys_the_variables() -> None:
    for panel in PANELS:
        for query in queries_of(panel):
            reads = query.expression.count("seg_") - query.expression.count("seg_event_loop_")  # of the process
            assert query.expression.count('model=~"$model", version=~"$version"') == reads, query


def test_grafana_finds_prometheus_and_scrapes_as_often_as_it_thinks() -> None:
    def read(path: str) -> dict:
        return yaml.safe_load((MONITORING / path).read_text(encoding="utf-8"))

    (source,) = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert DASHBOARD["templating"]["list"][0]["current"]["value"] == source["uid"]
    assert source["jsonData"]["timeInterval"] == read("prometheus.yml")["global"]["scrape_interval"]
    (provider,) = read("grafana/provisioning/dashboards/maskserve.yml")["providers"]
    mounts = read("../docker-compose.yml")["services"]["grafana"]["volumes"]
    assert f"./monitoring/grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_the_types_are_those_of_the_grafana_that_compose_starts() -> None:
    image = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["grafana"]["image"]
    wanted = json.loads((SCHEMA / "package.json").read_text(encoding="utf-8"))["dependencies"]["@grafana/schema"]
    assert image.partition(":")[2] == wanted


def test_the_lock_of_grafanas_types_names_no_place_to_fetch_from() -> None:
    text = (SCHEMA / "package-lock.json").read_text(encoding="utf-8")
    assert "resolved" not in text
    assert "://" not in text
    packages = json.loads(text)["packages"]
    assert all("integrity" in package for name, package in packages.items() if name)


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Grafana's types are installed."""
    folder = tmp_path_factory.mktemp("grafana_schema")
    for path in SCHEMA.iterdir():
        shutil.copy(path, folder)
    command = [tool("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode and os.environ.get("CI") != "true":
        pytest.skip(f"npm could not install Grafana's types: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    return folder


def complaints(types: Path, dashboard: str) -> str:
    """What the compiler says of a dashboard; nothing when it is well-formed."""
    source = (types / "shape.ts").read_text(encoding="utf-8")
    (types / "check.ts").write_text(f"{source}\nexport const dashboard: Ours = {dashboard};\n", encoding="utf-8")
    options = "--noEmit --strict --skipLibCheck --target es2022 --module esnext --moduleResolution bundler"
    command = [tool("node"), "node_modules/typescript/bin/tsc", *options.split(), "check.ts"]
    return subprocess.run(command, cwd=types, capture_output=True, text=True, timeout=120, check=False).stdout


@pytest.mark.slow
def test_grafanas_types_accept_the_dashboard(types: Path) -> None:
    assert complaints(types, PATH.read_text(encoding="utf-8")) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"schemaVersion": 41', '"schemaVersion": "41"'),
        ('"gridPos"', '"gridPoz"'),
        ('"lineWidth"', '"lineWidht"'),
        ('"mode": "multi"', '"mode": "many"'),
        ('"type": "stat"', '"type": "state"'),
        ('"expr"', '"expression"'),
        ('"multi": true', '"multiple": true'),
    ],
)
def test_grafanas_types_refuse_a_broken_dashboard(types: Path, right: str, wrong: str) -> None:
    text = PATH.read_text(encoding="utf-8")
    assert right in text
    assert "error TS2" in (said := complaints(types, text.replace(right, wrong, 1)))
    assert "Cannot find module" not in said
