"""`python -m bench.gpu`: what an engine on a GPU answers and how fast, beside the CPU; a report in Markdown.

    machine      GPU, driver, versions, precision
    parity       every bundle at batch 1, 2, 3 and its largest, against ONNX Runtime on the CPU
    scaling      images a second of the bare engine at 1 ... its largest batch, copies to and from the GPU included
    end to end   images a second through HTTP, decoding and masks included, beside the bare engine's best

`--pretend` goes the same way without a GPU: the same runner over the CPU's provider and plain memory, two images at
most, and the server on the CPU. Its figures say nothing; that it comes to its end says that the way is clear.
`scripts/gpu_check.sh` calls this.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from server.agreement import off
from server.bundle_files import PLAN_FILE
from server.cores import usable_cores
from server.engines import Engine, Tensors, choice, load_engine
from server.engines.choice import Here, Opened, Wanted, candidates
from server.engines.provider import Provider
from server.errors import EngineError, StartupError
from server.manifest import Bundle, read_bundle
from tests.server.engines.memory import MemoryDevice
from training.nuclei.server_process import serve

PICTURES = Path("docs/samples")
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "nvidia-cudnn-cu13", "numpy")
DEFAULT_TOLERANCE = 0.01  # for bundles that were exported before there were others
MEGAPIXELS = 16.0  # of a run; the server's default is meant for CPUs
PRETENDED = Provider("CPUExecutionProvider", "cpu")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--bundles", type=Path, default=Path("bundles"))
    parser.add_argument("--engine", choices=("cuda", "tensorrt"), default="cuda")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of each measurement")
    parser.add_argument("--clients", type=int, default=32, metavar="N", help="that ask the server at once")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.md"))
    parser.add_argument("--pretend", action="store_true", help="without a GPU: only whether all steps can be gone")
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    with args.out.open("w", encoding="utf-8") as report:

        def say(line: str = "") -> None:
            print(line, flush=True)
            print(line, file=report, flush=True)

        machine = Here(MemoryDevice(), provider=PRETENDED) if args.pretend else choice.here()
        for line in machine_lines(machine, args.pretend):
            say(line)
        for folder in sorted(path.parent for path in args.bundles.glob("*/*/manifest.json")):
            bundle = read_bundle(folder.resolve(), leave_out={PLAN_FILE})
            if args.engine == "tensorrt" and bundle.manifest.plan is None:
                say(f"{bundle.manifest.name}/{bundle.manifest.version}: not run, it has no model.plan")
                continue
            try:
                for line in bundle_lines(bundle, machine, args):
                    say(line)
                    failed += line.startswith("**FAILED")
            except (StartupError, EngineError, RuntimeError) as error:
                say(f"**FAILED** {bundle.manifest.name}: {type(error).__name__}: {error}")
                failed += 1
        say()
        say(f"{failed} failed" if failed else "nothing failed")
    return 1 if failed else 0


def machine_lines(machine: Here, pretend: bool) -> Iterator[str]:
    yield f"# Engines on a GPU, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
    yield ""
    if pretend:
        yield "**Pretended: no GPU was used, and no figure below means anything.**"
    elif machine.device is None:
        yield f"**FAILED** {machine.no_device}"
    else:
        found = machine.device.properties
        size = f"{found.memory / 2**30:.0f} GiB"
        yield f"{found.name}, compute capability {found.compute_capability}, {size}, driver {found.driver}; "
    yield f"Python {platform.python_version()}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}"
    for name in PACKAGES:
        try:
            yield f"- {name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue


def bundle_lines(bundle: Bundle, machine: Here, args: argparse.Namespace) -> Iterator[str]:
    manifest = bundle.manifest
    most = min(2, manifest.max_batch) if args.pretend else manifest.max_batch
    size = picture_size(bundle)
    most = min(most, max(2, int(MEGAPIXELS * 1e6) // (size[0] * size[1])))  # that the engine is opened for
    batches = sorted({batch for batch in (1, 2, 3, *(2**power for power in range(2, 10)), most) if batch <= most})
    began = time.perf_counter()
    opened = open_engine(bundle, machine, args.engine)
    engine, cpu = opened.engine, load_engine(bundle.folder / "model.onnx", usable_cores())
    try:
        yield ""
        yield f"## {manifest.name}/{manifest.version} on {engine.name}, {opened.precision}"
        yield ""
        yield f"opened in {time.perf_counter() - began:.1f} s; input {size[0]} x {size[1]}"
        yield ""
        kind = f"{engine.name}/{opened.precision}"
        tolerance = manifest.golden.tolerance.get(kind, DEFAULT_TOLERANCE)
        yield f"| batch | how far off (allowed {tolerance:g}) | in words |"
        yield "| --- | --- | --- |"
        batches = [batch for batch in batches if batch <= opened.max_batch]
        wrong = []
        for batch in (batch for batch in batches if batch in (1, 2, 3, batches[-1])):
            inputs = drawn(batch, size, seed=batch)
            wanted = cpu.run_alone(inputs)
            for _ in range(2):  # the first run of a shape may go another way than those after it
                value, words = off(engine.run(inputs), wanted, manifest.masks.legend, opened.precision)
                if not value <= tolerance:
                    wrong.append(f"**FAILED** {kind} at batch {batch}: {value:.2g} is more than {tolerance:g}")
            yield f"| {batch} | {value:.2g} | {words} |"
        yield from dict.fromkeys(wrong)
        yield ""
        yield "| batch | ms a run, median | p95 | images/s |"
        yield "| --- | --- | --- | --- |"
        best = 0.0
        for batch in batches:
            turns = timed(engine, drawn(batch, size, seed=0), args.seconds)
            median, p95 = statistics.median(turns), float(np.quantile(turns, 0.95))
            best = max(best, batch / median)
            yield f"| {batch} | {1000 * median:.2f} | {1000 * p95:.2f} | {batch / median:.1f} |"
    finally:
        engine.close()
        cpu.close()
    yield ""
    rate, said = end_to_end(bundle, args)
    part = f"{rate / best:.2f} of the bare engine's best"
    yield f"end to end, {args.clients} clients: **{rate:.1f} images/s**, {part}; {said}"
    if not rate:
        yield "**FAILED** the server answered nothing"


def open_engine(bundle: Bundle, machine: Here, name: str) -> Opened:
    wanted = Wanted(usable_cores(), "cuda" if name == "cuda" else "tensorrt", None, int(MEGAPIXELS * 1e6))
    (candidate,), _ = candidates(bundle, wanted, machine)
    return candidate.open()


def picture_size(bundle: Bundle) -> tuple[int, int]:
    """(height, width) of the tensor that the first of the sample pictures becomes."""
    with Image.open(sorted(PICTURES.glob("*.png"))[0]) as picture:
        return bundle.manifest.input.frame((picture.height, picture.width)).input_size


def drawn(batch: int, size: tuple[int, int], seed: int) -> Tensors:
    """Pictures of grey patches with some noise."""
    rng = np.random.default_rng(seed)
    rows, columns = -(-size[0] // 32), -(-size[1] // 32)
    coarse = rng.integers(20, 230, (batch, rows, columns, 3)).repeat(32, axis=1).repeat(32, axis=2)
    noise = rng.integers(-20, 20, (batch, *size, 3))
    images = (coarse[:, : size[0], : size[1]] + noise).clip(0, 255).astype(np.uint8)
    return {"images": images, "sizes": np.tile(np.array(size, np.int32), (batch, 1))}


def timed(engine: Engine, inputs: Tensors, seconds: float) -> list[float]:
    """Seconds of every run, one after the other; three before that are not counted."""
    turns: list[float] = []
    until = time.perf_counter() + seconds
    for turn in itertools.count():
        began = time.perf_counter()
        if turn > 4 and began > until:
            return turns
        engine.run(inputs)
        if turn >= 3:
            turns.append(time.perf_counter() - began)
    return turns


def end_to_end(bundle: Bundle, args: argparse.Namespace) -> tuple[float, str]:
    """Right answers a second of the real server, and what it says of its engine."""
    manifest = bundle.manifest
    engine = "onnxruntime" if args.pretend else args.engine
    with tempfile.TemporaryDirectory() as folder:
        bundles, result = Path(folder) / "bundles", Path(folder) / "load.json"
        link = bundles / manifest.name / str(manifest.version)
        link.parent.mkdir(parents=True)
        link.symlink_to(bundle.folder, target_is_directory=True)
        flags = ["--engine", engine, "--max-batch-megapixels", str(MEGAPIXELS), "--log-sample", "0"]
        with serve(bundles, *flags, "--max-wait-ms", "5000", "--queue-limit", "256", patience_s=180) as port:
            command = [sys.executable, "-m", "loadtest", f"http://127.0.0.1:{port}", "--quiet", "--json", str(result)]
            load = ["--concurrency", str(args.clients), "--duration", str(max(args.seconds, 3)), "--warmup", "1"]
            done = subprocess.run([*command, *load], capture_output=True, text=True, timeout=300, check=False)
        if not result.exists():
            raise RuntimeError(f"the load tester: {done.stderr.strip()[-300:]}")
        measured = json.loads(result.read_text())["result"]
    rate = measured["good"] / measured["window_s"]
    return rate, f"{measured['requests']} requests, {measured['requests'] - measured['good']} without a right answer"


if __name__ == "__main__":
    sys.exit(main())
