"""`python -m bench.overload`: three times too many requests, in turns with as many as fit.

    calm | storm | calm | storm | calm        every storm is compared with the calm before and after it

Calm is 8 callers who wait for their answers. In a storm requests come at random, three times as many as the calms
carried; what counts are right answers within a second of the moment when they were due. The load comes from
`python -m loadtest`, which takes cores too; how much is printed. CPU time of a refusal: what the server took in a
storm, less what its answers would have taken in the calms beside it, over the refusals.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from export.sample import draw
from training.nuclei.server_process import serve

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "runs" / "peers"  # where `bench.peers` left its networks
CALLERS, TIMES = 8, 3.0
CALM_S, STORM_S = 3.0, 5.0
PROMISE_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Part:
    """One load and what it cost."""

    result: dict[str, Any]  # of `python -m loadtest --json`
    cpu_s: float  # of the server's processes

    @property
    def per_s(self) -> float:
        return float(self.result["goodput_per_s"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="storms (default: 6, a minute for each network)")
    args = parser.parse_args(arguments)
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder)
        photo = PEERS / "models" / "photo.jpg"
        if photo.exists():
            (pictures / "photo.jpg").write_bytes(photo.read_bytes())
        else:
            Image.fromarray(draw((480, 640), seed=0)).save(pictures / "drawn.jpg", quality=90)
        for bundles in sorted(PEERS.glob("bundles/*")) or [ROOT / "bundles"]:
            _measure(bundles, pictures, args.rounds)
    return 0


def _measure(bundles: Path, pictures: Path, rounds: int) -> None:
    with serve(bundles, "--log-level", "error") as port:
        _load(port, pictures, CALM_S, "--concurrency", str(CALLERS))
        calm = [_load(port, pictures, CALM_S, "--concurrency", str(CALLERS))]
        at_rest, ratios, refusals, refusal_ms, accepted_ms, clients, peak = _pss_mb(), [], [], [], [], [], 0.0
        for _ in range(rounds):
            storm = _load(port, pictures, STORM_S, "--rate", f"{TIMES * calm[-1].per_s:.1f}")
            peak = max(peak, _pss_mb())
            calm.append(_load(port, pictures, CALM_S, "--concurrency", str(CALLERS)))
            beside = calm[-2:]
            ratios.append(storm.per_s / statistics.mean(part.per_s for part in beside))
            of_an_image = sum(part.cpu_s for part in beside) / sum(part.result["good"] for part in beside)
            refused = [failure for failure in storm.result["failures"] if failure["status"] == 503]
            count = sum(failure["count"] for failure in refused)
            if count:
                refusals.append(1000 * (storm.cpu_s - of_an_image * storm.result["good"]) / count)
                refusal_ms.append(max(failure["p95_ms"] for failure in refused))
            accepted_ms.append(storm.result["latency_ms"]["p99"])
            clients.append(storm.result["client_cores"])
        calm_per_s = statistics.median(part.per_s for part in calm)
        print(f"{bundles.name}: {calm_per_s:.0f} images/s when calm; {rounds} storms, median (least to most):")
        rows = {
            "answers within a second, to those of the calms beside it": _spread(ratios, ".2f"),
            "what is accepted waits, p99": f"{_spread(accepted_ms, '.0f')} ms",
            "a refusal waits, p95": f"{_spread(refusal_ms, '.1f')} ms",
            "a refusal costs": f"{_spread(refusals, '.2f')} ms of CPU",
            "memory": f"{at_rest:.0f} MB before the storms, at most {peak:.0f} MB after one (PSS)",
            "the client took": f"{_spread(clients, '.2f')} cores",
        }
        for what, told in rows.items():
            print(f"  {what:<58} {told}", flush=True)


def _spread(values: list[float], form: str) -> str:
    if not values:
        return "none"
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _load(port: int, pictures: Path, seconds: float, *how: str) -> Part:
    before = _cpu_s()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "loadtest", f"http://127.0.0.1:{port}", *how, "--duration", f"{seconds:g}"]
        command += ["--warmup", "0", "--images", str(pictures), "--p99-ms", f"{PROMISE_MS:g}", "--check", "none"]
        command += ["--quiet", "--json", file.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode not in (0, 1):  # 1: the promise was broken, as it is in a storm
            raise RuntimeError(f"the load tester ended with {done.returncode}: {done.stdout}{done.stderr}")
        result = json.loads(Path(file.name).read_text())["result"]
    return Part(result, _cpu_s() - before)


def _server() -> list[int]:
    """Process ids of the server and its children."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # it has ended
                continue
    children = [number for number, parent in parents.items() if parent == os.getpid()]
    return children + [number for number, parent in parents.items() if parent in children]


def _cpu_s() -> float:
    ticks = 0
    for number in _server():
        fields = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _pss_mb() -> float:
    texts = [Path(f"/proc/{number}/smaps_rollup").read_text() for number in _server()]
    kib = [float(value) for text in texts for value in re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)]
    return sum(kib) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
