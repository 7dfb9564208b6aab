"""The same network in several precisions, side by side on this CPU: file size, time of a picture, memory.

    python -m bench.precision --pictures DIR bundles/nuclei/1 runs/nuclei/2 runs/nuclei/3

Bundles take turns picture by picture (A B C A B C ...), so that whatever else the machine does falls on all of them.
One core: CPU time of a run as the server makes it in a crowd, which others on the machine hardly move; images/s is what
one such core makes. All cores: wall time of a run as for a lone request, true on a quiet machine only. Memory: what a
process of its own holds at most, having opened the bundle and answered every picture once on one core (Linux).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from export.errors import ExportError
from export.precision.pictures import list_pictures, placed
from server.bundle_files import MODEL_FILE
from server.cores import usable_cores
from server.engines import load_engine
from server.errors import RequestError, StartupError
from server.manifest import Manifest, read_manifest

MEMORY = "import sys; from bench.precision import hold; hold(sys.argv[1], sys.argv[2], int(sys.argv[3]))"


def hold(bundle: str, pictures: str, most: int) -> None:
    """Answer every picture once, and print the most memory that this process held, megabytes."""
    manifest = read_manifest(Path(bundle))
    engine = load_engine(Path(bundle) / MODEL_FILE, 1)
    for inputs in placed(list_pictures(Path(pictures), most), manifest.input):
        engine.run(inputs)
    status = Path("/proc/self/status").read_text()  # getrusage would tell of the process that started this one too
    print(f"{int(status.split('VmHWM:')[1].split()[0]) * 1024 / 1e6:.0f}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="<bundles>/<model>/<version>")
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="pictures to answer")
    parser.add_argument("--most", type=int, default=24, help="of these (default 24)")
    args = parser.parse_args(argv)
    try:
        compare([path.resolve() for path in args.bundles], args.pictures, args.most)
    except (ExportError, StartupError, RequestError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    return 0


def compare(bundles: list[Path], folder: Path, most: int) -> None:
    """Print the table.

    Raises:
        ExportError: no pictures in the folder.
        StartupError: a bundle cannot be opened.
        RequestError: a picture cannot be read.
    """
    manifests = [read_manifest(path) for path in bundles]
    pictures = list(placed(list_pictures(folder, most), manifests[0].input))
    engines = [load_engine(path / MODEL_FILE, usable_cores()) for path in bundles]
    times: dict[str, list[list[float]]] = {"one": [[] for _ in engines], "all": [[] for _ in engines]}
    for turn, inputs in enumerate([pictures[0], *pictures]):  # the first once more, to warm up
        for number, engine in enumerate(engines):
            for kind, run, clock in (
                ("one", engine.run, time.process_time),
                ("all", engine.run_alone, time.perf_counter),
            ):
                began = clock()
                run(inputs)
                if turn:
                    times[kind][number].append(clock() - began)
    for engine in engines:
        engine.close()
    print(f"{len(pictures)} pictures, {usable_cores()} cores; medians")
    heads = ("file", "one core", "all cores", "images/s", "to first", "memory")
    print(f"{'precision':<10} {' '.join(f'{head:>9}' for head in heads)}")
    for number, (path, manifest) in enumerate(zip(bundles, manifests, strict=True)):
        one, every = times["one"][number], times["all"][number]
        ratio = median(mine / first for mine, first in zip(one, times["one"][0], strict=True))
        megabytes = (path / MODEL_FILE).stat().st_size / 1e6
        print(
            f"{manifest.precision:<10} {megabytes:>6.2f} MB {1000 * median(one):>6.0f} ms "
            f"{1000 * median(every):>6.0f} ms {len(one) / sum(one):>9.1f} {ratio:>9.2f} "
            f"{_memory(path, folder, most, manifest):>6} MB"
        )


def _memory(path: Path, folder: Path, most: int, manifest: Manifest) -> str:
    command = [sys.executable, "-c", MEMORY, str(path), str(folder), str(most)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise SystemExit(f"{manifest.name}/{manifest.version} could not be run: {done.stderr[-300:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
