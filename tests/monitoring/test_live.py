"""The proof: a real Prometheus reads a real server that answers, errs, refuses and restarts; everything returns data.

One run of about half a minute, then questions about it. The GPU row is left out: NVIDIA's exporter fills it.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.monitoring import load
from tests.monitoring.dashboard import DASHBOARD, GPU_ROW, Query, filled, marks, metrics_in, panels, queries_of
from tests.monitoring.stack import Server, ask, is_up, prometheus, query_range, wait_until
from tests.tools import tool

pytestmark = pytest.mark.slow

PLACES = 4  # --queue-limit
WINDOW = "4s"  # four scrapes, as Grafana has it

CONTRACT = {
    "seg_requests_total",
    "seg_failures_total",
    "seg_images_total",
    "seg_request_seconds",
    "seg_stage_seconds",
    "seg_batch_size",
    "seg_instances",
    "seg_queue_depth",
    "seg_queue_limit",
    "seg_rejected_total",
    "seg_cancelled_total",
    "seg_wasted_images_total",
    "seg_engine_busy_seconds_total",
    "seg_model_info",
    "seg_model_ready",
    "seg_response_bytes",
    "seg_image_pixels",
}

OF_THE_PROCESS = {"seg_event_loop_lag_seconds"}  # ours, beyond the contract; no model is to blame

NOT_SHOWN = {
    "process_virtual_memory_bytes": "address space that is reserved says nothing of memory in use",
}

QUERIES = [query for panel in panels(without=(GPU_ROW,)) for query in queries_of(panel)]


@dataclass(frozen=True, slots=True)
class Run:
    """What happened, and where to ask about it."""

    base: str
    page: str  # /metrics at the end
    began: float
    stopped: float  # before the restart
    loaded: float  # when the last request was answered
    ended: float

    def series(self, expression: str) -> list:
        return query_range(self.base, expression, self.began, self.ended, step_s=1)

    def moved(self, metric: str, label: str) -> set[str]:
        """The values of a label for which a counter was above zero."""
        found = self.series(f"sum by ({label}) ({metric})")
        return {labels[label] for labels, samples in found if max(value for _, value in samples) > 0}


def busy(port: int, pictures: list[bytes]) -> None:
    """Refusals for certain, over a few scrapes, and some seconds of everything."""
    with load.held(port, PLACES):
        wait_until(lambda: load.post(port, pictures[0]) == 503)
        for _ in range(25):
            assert load.post(port, pictures[0]) == 503
            time.sleep(0.1)
    callers = [(load.forms, 0.0), (load.album, 0.1), (load.mistakes, 0.3), (load.hang_up, 0.2), (load.crowd, 0.5)]
    load.run(port, pictures, callers, seconds=5)


@pytest.fixture(scope="module")
def run(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    pictures = [load.png(Image.effect_noise((side, side), 60)) for side in (64, 300, 700)]
    bundles = tiny_bundle.parent.parent
    with (
        Server(bundles, "--queue-limit", str(PLACES)) as server,
        prometheus(tmp_path_factory.mktemp("prometheus"), server.port) as base,
    ):
        began = time.time()
        busy(server.port, pictures)
        server.stop()
        stopped = time.time()
        wait_until(lambda: not is_up(base))
        time.sleep(2)  # for the rules to see it
        server.start()
        wait_until(lambda: is_up(base))
        busy(server.port, pictures)
        loaded = time.time()
        time.sleep(3)  # for the last scrapes and what is computed of them
        page = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=10).text
        yield Run(base, page, began, stopped, loaded, time.time())


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.panel}: {query.legend}")
def test_a_panel_has_data(run: Run, query: Query) -> None:
    assert run.series(query.on(WINDOW)), query.expression


def test_a_misspelt_metric_has_none(run: Run) -> None:
    assert not run.series('rate(seg_request_total{model=~".*"}[4s])')


def test_a_query_that_makes_no_sense_is_an_error(run: Run) -> None:
    with pytest.raises(AssertionError, match="parse error"):
        run.series("rate(seg_requests_total[4s]")


def test_every_rule_is_computed_and_every_metric_it_reads_is_there(run: Run) -> None:
    rules = [rule for group in ask(run.base, "rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 12
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
        for metric in metrics_in(rule["query"]):
            assert run.series(f'{{__name__=~"{metric}(_bucket|_count)?"}}'), (rule["name"], metric)
        if rule["type"] == "recording":
            assert run.series(rule["name"]), rule["name"]


def test_the_load_brought_every_kind_of_answer(run: Run) -> None:
    assert run.moved("seg_requests_total", "status") == {"200", "400", "404", "422", "499", "503", "504"}
    assert run.moved("seg_rejected_total", "reason") >= {"overloaded", "deadline_exceeded"}
    assert run.moved("seg_failures_total", "code") >= {"bad_image", "truncated_image", "unknown_model", "bad_parameter"}
    assert "receive" in run.moved("seg_cancelled_total", "stage")


def test_a_server_that_is_down_and_one_that_refuses_are_noticed(run: Run) -> None:
    noticed = {labels["alertname"] for labels, _ in run.series('ALERTS{alertstate="pending"}')}
    assert {"MaskserveDown", "MaskserveShedding"} <= noticed  # a slow machine may add others


def test_a_restart_is_marked_and_nothing_else_is(run: Run) -> None:
    (restarts,) = marks()
    marked = [at for _, samples in run.series(restarts.on(WINDOW)) for at, _ in samples]
    assert marked
    assert min(marked) > run.stopped


def test_the_stages_stack_up_to_the_mean_request(run: Run) -> None:
    (stages,) = (query.on(WINDOW) for query in QUERIES if query.panel == "Where the time goes")
    mean = f"sum(rate(seg_request_seconds_sum[{WINDOW}])) / sum(rate(seg_request_seconds_count[{WINDOW}]))"
    for total, height, tolerance in (
        ("sum(seg_request_seconds_sum)", "sum(seg_stage_seconds_sum)", 1e-6),
        (mean, f"sum({stages})", 0.1),  # rates are extrapolated, each stage by itself
    ):
        ((_, ((_, wanted),)),) = query_range(run.base, total, run.loaded, run.loaded, step_s=1)
        ((_, ((_, got),)),) = query_range(run.base, height, run.loaded, run.loaded, step_s=1)
        assert got == pytest.approx(wanted, rel=tolerance)


def test_the_variables_offer_the_model_and_its_version(run: Run) -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert match is not None
        found = run.series(filled(match[1], WINDOW))
        assert {labels[match[2]] for labels, _ in found} == {"model": {"tiny"}, "version": {"1"}}[variable["name"]]


def exported(page: str) -> set[str]:
    return set(re.findall(r"(?m)^# TYPE (\S+)", page))


def test_every_metric_of_the_contract_is_exported_with_model_and_version(run: Run) -> None:
    assert {name for name in exported(run.page) if name.startswith("seg_")} == CONTRACT | OF_THE_PROCESS
    for line in run.page.splitlines():
        if line.startswith("seg_") and not line.startswith(tuple(OF_THE_PROCESS)):
            assert 'model="' in line
            assert 'version="' in line


def test_every_exported_metric_is_shown_or_left_out_for_a_reason(run: Run) -> None:
    rules = [rule["query"] for group in ask(run.base, "rules")["groups"] for rule in group["rules"]]
    shown = {metric for text in [*rules, *(query.on(WINDOW) for query in QUERIES)] for metric in metrics_in(text)}
    assert exported(run.page) - shown == set(NOT_SHOWN)


def test_promtool_finds_no_fault_in_the_metrics(run: Run) -> None:
    command = [tool("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=run.page, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
