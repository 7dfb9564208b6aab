"""The rules: Prometheus understands them, every alert fires in the right story, and each one says what to do."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from tests.conftest import ROOT
from tests.monitoring.stack import MONITORING
from tests.tools import tool


def read(name: str) -> dict:
    return yaml.safe_load((MONITORING / name).read_text(encoding="utf-8"))


RULES = [rule for group in read("rules.yml")["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
CASES = [case for story in read("rules_test.yml")["tests"] for case in story.get("alert_rule_test", ())]


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [tool("promtool"), *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_understands_the_configuration_and_its_rules() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "config", "prometheus.yml")


def test_every_story_about_the_rules_comes_true() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_story_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    told = [case["exp_alerts"] for case in CASES if case["alertname"] == alert]
    assert any(told)
    assert not all(told)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_waits_a_while_and_says_how_bad_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert re.fullmatch(r"\d+m", rule["for"])
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{alert.lower()}"


@pytest.mark.parametrize("alert", ALERTS)
def test_the_operators_page_has_a_section_on_an_alert(alert: str) -> None:
    headings = re.findall(r"(?m)^#+ +(.+?) *$", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
    assert alert in headings


def test_the_job_of_the_rules_is_the_job_that_is_scraped() -> None:
    jobs = {job["job_name"] for job in read("prometheus.yml")["scrape_configs"]}
    assert {match for rule in RULES for match in re.findall(r'job="(\w+)"', rule["expr"])} == jobs
