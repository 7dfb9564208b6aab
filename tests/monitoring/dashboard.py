"""The dashboard's file, read as Grafana reads it: its panels, their queries, and the variables put in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.conftest import ROOT

PATH = ROOT / "monitoring" / "grafana" / "dashboards" / "maskserve.json"
DASHBOARD = json.loads(PATH.read_text(encoding="utf-8"))
GPU_ROW = "GPU (needs the job dcgm of prometheus.yml)"


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a panel's queries."""

    panel: str
    expression: str
    legend: str

    def on(self, window: str) -> str:
        """The expression with all models and versions, and rates over `window`."""
        return filled(self.expression, window)

    def label(self, labels: dict[str, str]) -> str:
        """A series' name as the legend shows it."""
        return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), self.legend)


def filled(expression: str, window: str) -> str:
    for name, value in {"$__rate_interval": window, "$model": ".*", "$version": ".*"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def panels(without: tuple[str, ...] = ()) -> Iterator[dict]:
    """All panels that show something, those inside collapsed rows too, except in the rows named."""
    row = ""
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            if row not in without:
                yield from panel["panels"]
        elif row not in without:
            yield panel


def rows() -> list[dict]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]


def queries_of(panel: dict) -> list[Query]:
    return [Query(panel["title"], target["expr"], target["legendFormat"]) for target in panel["targets"]]


def marks() -> list[Query]:
    """The queries of the annotations."""
    marked = DASHBOARD["annotations"]["list"]
    return [Query(entry["name"], entry["target"]["expr"], entry["titleFormat"]) for entry in marked]


def metrics_in(expression: str) -> set[str]:
    """The metrics an expression reads, histograms and counters by the name of their family."""
    bare = re.sub(r'"[^"]*"|\b(by|on|ignoring|without)\s*\([^)]*\)', "", expression)
    names = set(re.findall(r"\b(?:seg|process|maskserve:|model:|DCGM)\w*(?::\w+)*|\bup\b", bare))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
