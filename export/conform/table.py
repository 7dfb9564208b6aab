"""The rows of a conformance run, as they are printed while it goes and summed up at its end.

system                        case    stage                      worst error                        verdict
mmdet_mask_rcnn_r50_fpn       c1      raw tensors                2.1e-06 std at rpn_logits.3        pass
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "FAIL", "by design", "not run"]
WIDTHS = (34, 6, 34, 52)


@dataclass(frozen=True)
class Row:
    """One stage of one case."""

    system: str
    case: str
    stage: str
    worst: str  # the figure that decides, with what it belongs to
    verdict: Verdict


def verdict(passes: bool) -> Verdict:
    return "pass" if passes else "FAIL"


def header() -> str:
    return _line("system", "case", "stage", "worst error", "verdict")


def line(row: Row) -> str:
    return _line(row.system, row.case, row.stage, row.worst, row.verdict)


def summary(rows: Iterable[Row], seconds: float, memory_mb: float) -> str:
    """What passed, what failed, what nobody here knows, and what it took."""
    rows = list(rows)
    by: dict[str, list[Row]] = {"pass": [], "FAIL": [], "by design": [], "not run": []}
    for row in rows:
        by[row.verdict].append(row)
    ran = {row.system for row in (*by["pass"], *by["FAIL"])}
    failed = sorted({f"{row.system}/{row.case}" for row in by["FAIL"]})
    unknown = sorted({row.system for row in by["not run"]} - ran)
    lines = [f"{len(by['pass'])} of {len(by['pass']) + len(by['FAIL'])} rows of {len(ran)} systems pass"]
    if by["by design"]:
        lines.append(f"different by design, see docs/models.md: {len(by['by design'])} rows")
    if unknown:
        lines.append(f"not known to this version and not run: {len(unknown)} systems ({', '.join(unknown)})")
    lines.append(f"{seconds:.0f} s, {memory_mb:.0f} MB at most")
    if failed:
        lines.append(f"failed: {', '.join(failed)}; run one again with --only {failed[0]}")
    return "\n".join(lines)


def exit_code(rows: Iterable[Row]) -> int:
    """1 where a row failed; what did not run, and what differs by design, does not count."""
    return int(any(row.verdict == "FAIL" for row in rows))


def _line(system: str, case: str, stage: str, worst: str, decided: str) -> str:
    cells = (system, case, stage, worst)
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)) + f"  {decided}"
