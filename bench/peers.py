"""Our server in the table of the peers' harness (`../shared/peers`): beside a bare loop, A B A B in one run.

    python -m bench.peers                        # our two rows, both models: about 6 minutes
    python -m bench.peers --peers mosec,naive2   # and those of other servers, which the harness installs first

The first row is the server as it comes. `maskserve_800` lets a request wait 800 ms in place of 500, as one would for
callers who wait a second: 32 callers of a network that takes 40 ms of CPU are 0.6 s of work on two cores.

The harness measures a bare in-process loop (two processes, the whole job, no server) before and after every slice of
load, so each figure is a ratio of neighbours in time. It makes its own two networks, which we adopt as they come;
`common.py` beside it does the same work with OpenCV and pycocotools. What it needs is installed below `runs/peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HARNESS = ROOT.parent / "shared" / "peers"
HOME = ROOT / "runs" / "peers"
MODELS = ("light", "heavy")
PATIENT_MS = 800


def main(arguments: list[str] | None = None) -> int:
    """0 when the table was printed, or there is no harness to print it."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="light, heavy or both (default)")
    parser.add_argument(
        "--peers", default="", help="other servers to measure in the same run, as the harness calls them"
    )
    parser.add_argument(
        "--rounds", type=int, default=0, help="slices of load per number of callers; the harness knows best"
    )
    args = parser.parse_args(arguments)
    if not (HARNESS / "run_peers.py").exists():
        print(f"no harness at {HARNESS}: the servers of others are not compared")
        return 0
    others = [name for name in args.peers.split(",") if name]
    environment = {**os.environ, "PEERS_ROOT": str(HOME), "PEERS_MODELS": str(HOME / "models")}
    (HOME / "models").mkdir(parents=True, exist_ok=True)
    installed = [
        "client",
        *({"naive1": "naive", "naive2": "naive", "mosec3": "mosec"}.get(name, name) for name in others),
    ]
    _run(["bash", str(HARNESS / "setup.sh"), *installed], environment)
    if not (HOME / "models" / "heavy_maskserve.onnx").exists():
        _run([sys.executable, str(HARNESS / "make_models.py")], environment)
    for model in MODELS:
        _adopt(model)
    extra = HOME / "ours.json"
    rows = [_row("maskserve", ""), _row(f"maskserve_{PATIENT_MS}", f"--max-wait-ms {PATIENT_MS}")]
    extra.write_text(json.dumps(rows))
    results = HOME / "results.jsonl"
    results.unlink(missing_ok=True)
    measure = [
        str(HOME / "client/bin/python"),
        str(HARNESS / "run_peers.py"),
        "--extra",
        str(extra),
        "--out",
        str(results),
    ]
    measure += ["--models", args.models, "--peers", ",".join([*(row["name"] for row in rows), *others])]
    measure += ["--rounds", str(args.rounds)] if args.rounds else []
    print(f"load before: {os.getloadavg()[0]:.1f}", flush=True)
    _run(measure, environment)
    return 0


def _row(name: str, options: str) -> dict[str, str]:
    """How the harness starts our server and what it sends. The model's name is filled in by the shell."""
    start = HOME / f"{name}.sh"
    bundles = f'"{HOME}/bundles/$PEERS_MODEL"'
    start.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m server --bundles {bundles} --port "$PEERS_PORT" {options}\n'
    )
    start.chmod(0o755)
    return {
        "name": name,
        "cmd": f"{start}",
        "cwd": str(ROOT),
        "path": "/v1/segment",
        "payload": "raw",
        "ready": "/readyz",
    }


def _adopt(model: str) -> None:
    """The harness' network as a bundle, with the rules of its `common.py`."""
    out = HOME / "bundles" / model / model / "1"
    shutil.rmtree(out, ignore_errors=True)
    graph = HOME / "models" / f"{model}_maskserve.onnx"
    rules = ["--resize", "stretch", "--shrink", "linear", "--class-count", "80", "--score-threshold", "0.5"]
    command = [sys.executable, "-m", "export", "adopt", str(graph), "--layout", "maskserve", "--out", str(out), *rules]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def _run(command: list[str], environment: dict[str, str]) -> None:
    subprocess.run(command, check=True, cwd=HARNESS, env=environment)


if __name__ == "__main__":
    sys.exit(main())
