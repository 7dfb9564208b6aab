"""The report for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from loadtest.report import Document
from loadtest.search import MIN_REQUESTS


def to_text(report: Document) -> str:
    return "\n".join(_lines(report))


def _lines(report: Document) -> Iterator[str]:
    if report["interrupted"]:
        yield "stopped before the end; this is what was measured until then"
    if tuning := report.get("tuning"):
        yield from _tuning(report, tuning)
        return
    if search := report.get("search"):
        yield from _search(report, search)
    if result := report.get("result"):
        yield from _result(report, result)


def _result(report: Document, result: Document) -> Iterator[str]:
    shown = result["latency_ms"]
    yield ""
    yield f"{report['load']}, {result['window_s']:.1f} s after {result['warmup_s']:g} s of warm-up"
    yield f"  requests     {result['requests']}: {result['good']} answered right" + "".join(
        f", {count} {what}"
        for count, what in (
            (sum(failure["count"] for failure in result["failures"]), "failed"),
            (result["unfinished"], "unanswered when it was stopped"),
        )
        if count
    )
    yield (
        f"  throughput   {result['throughput_per_s']:.2f} right answers/s"
        + (f", asked for {result['offered_per_s']:.2f}/s" if report["settings"]["mode"] != "closed" else "")
    )
    if shown:
        yield "  latency      " + "  ".join(f"{name} {ms:.1f}" for name, ms in shown.items()) + " ms"
    if (alone := report["alone"]["median_ms"]) is not None:
        yield f"  alone        {alone:.1f} ms for a picture when nothing else happens"
    if server := result["server"]:
        mean = dict(server["mean_ms"])
        total = mean.pop("total", None)
        batch = f"; batches of {server['mean_batch_size']:g}" if server["mean_batch_size"] else ""
        stages = "  ".join(f"{stage} {ms:.1f}" for stage, ms in mean.items())
        yield f"  in the server  {stages} = {total or sum(mean.values()):.1f} ms on average{batch}"
    for failure in result["failures"]:
        named = f"{failure['status']} {failure['kind']}" if failure["status"] else failure["kind"]
        after = f"after {failure['median_ms']:.1f} ms (p95 {failure['p95_ms']:.1f})"
        yield f"  failed       {failure['count']} x {named}, {after}: {failure['why']}"
    if report["promise"] and not report.get("search"):
        promise = report["promise"]
        yield (
            f"  promise      {'held' if promise['held'] else 'BROKEN'}: {100 * result['within_promise']:.2f} % right "
            f"within {promise['p99_ms']:g} ms (99 % promised), {result['error_percent']:.2f} % failed "
            f"({promise['error_percent']:g} % allowed); {result['goodput_per_s']:.2f}/s kept it"
        )
    for reason in result["unsteady_because"]:
        yield f"  not steady   {reason}"
    if result["out_of_requests"]:
        yield "  cut short    there were more requests to send than --max-requests allows"
    if result["resent"]:
        yield f"  resent       {result['resent']} requests met a connection that the server was just closing"
    yield from _client(result)
    yield from _advice(report, result)


def _client(result: Document) -> Iterator[str]:
    """Whether the measuring itself was at its limit."""
    late = result["late_ms"].get("p99", 0.0)
    cpu = result["client_cpu_ms"] or 0.0
    yield (
        f"  this tester  {cpu:.2f} ms of processor time a request, {100 * result['client_cores']:.0f} % of a core; "
        f"sent {late:.2f} ms late (p99); {result['connections']} connections"
    )
    if result["client_cores"] > 0.8:
        yield "  CAUTION      this program was busy itself: latencies hold its own delays. Use several, or a lower rate"
    elif late > max(5.0, 0.2 * result["latency_ms"].get("p50", 0.0)):
        yield "  CAUTION      requests went out late: connections ran out (--connections), or this machine was busy"


def _advice(report: Document, result: Document) -> Iterator[str]:
    if report["settings"]["mode"] == "closed" and result["good"] and not report["interrupted"]:
        rate = 0.7 * result["throughput_per_s"]
        yield f"  next         how long do people wait at 70 % of that? --rate {rate:.2g}"


def _search(report: Document, search: Document) -> Iterator[str]:
    promise = f"99 % right within {report['promise']['p99_ms']:g} ms"
    yield ""
    if search["rate"]:
        sure = "confirmed by a longer run" if search["confirmed"] else "not confirmed"
        yield f"highest rate that holds ({promise}): {search['rate']:.2f}/s, {sure}"
        if min(step["requests"] for step in search["steps"] if step["held"]) < MIN_REQUESTS:
            yield f"  steps had fewer than {MIN_REQUESTS} requests, so chance has a say; a longer --duration is surer"
    else:
        yield f"no rate holds ({promise}): {_why_none(report, search['steps'])}"


def _why_none(report: Document, steps: list[Document]) -> str:
    if steps:
        return f"the slowest tried was {min(step['rate'] for step in steps):.2f}/s"
    if report["interrupted"]:
        return "it was stopped before the first step was over"
    return f"a picture takes {report['alone']['median_ms']:.1f} ms when nothing else happens"


def _tuning(report: Document, tuning: Document) -> Iterator[str]:
    yield ""
    yield f"highest rate with 99 % right within {report['promise']['p99_ms']:g} ms:"
    for trial in tuning["trials"]:
        mark = "->" if trial == tuning["best"] else "  "
        settings = " ".join(f"{name}={value}" for name, value in trial["settings"].items()) or "the server's defaults"
        rate = f"{trial['rate']:8.2f}/s" if trial["rate"] else "       -  "
        yield f"{mark} {rate}  {settings}" + (f"  ({trial['why']})" if trial["why"] else "")
