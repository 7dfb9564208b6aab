"""Building in a process of its own: a compiler that dies takes no bundle with it, and its memory is counted alone.

    python -m export.tensorrt.worker JOB.json

reads a `Job`, writes an `Answer` beside it, and prints progress. `build_apart` is the caller's side.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from export.errors import ExportError
from export.progress import peak_memory_mb as peak_of_process
from export.tensorrt.building import Built, Refused, build
from export.tensorrt.options import Options
from export.tensorrt.package import Name, Package, find
from server.manifest import Profile

ANSWER = "answer.json"


class Job(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    builder: Name
    twin: Path
    plan: Path
    profiles: list[Profile]
    options: Options


class Answer(BaseModel):
    """One of the first three."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    built: Built | None = None
    refused: tuple[str, str, str] | None = None  # reason, node, operator
    error: str | None = None
    peak_memory_mb: float


def build_apart(
    package: Package, twin: Path, plan: Path, profiles: list[Profile], options: Options, quiet: bool = False
) -> tuple[Built, float]:
    """`building.build` in another process.

    Args:
        quiet: print no progress.

    Returns:
        What is known of the engine, and the most memory that its building held, megabytes.

    Raises:
        Refused, ExportError: as `building.build`; also when the builder dies.
    """
    with tempfile.TemporaryDirectory(prefix="maskserve-plan-") as folder:
        path = Path(folder) / "job.json"
        job = Job(builder=package.name, twin=twin.resolve(), plan=plan.resolve(), profiles=profiles, options=options)
        path.write_text(job.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(path)]
        said = subprocess.DEVNULL if quiet else None
        done = subprocess.run(command, check=False, cwd=Path(__file__).parents[2], stdout=said)
        answered = path.with_name(ANSWER)
        if not answered.exists():
            raise ExportError(_death(package, done.returncode))
        answer = Answer.model_validate_json(answered.read_text(encoding="utf-8"))
    if answer.refused is not None:
        raise Refused(*answer.refused)
    if answer.built is None:
        raise ExportError(answer.error or "the builder ended without an answer")
    return answer.built, answer.peak_memory_mb


def _death(package: Package, code: int) -> str:
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    hint = "it was probably out of memory; lower --max-batch" if code == -signal.SIGKILL else "nothing was written"
    return f"the builder of {package.name} {package.version} {how} while it compiled the graph; {hint}"


def _peak_memory_mb() -> float:
    """Of this program: what Linux counts for the process begins with the caller that it was forked from."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1e3 * 1.024
    except (OSError, StopIteration):
        return peak_of_process()


def _say(line: str) -> None:
    print(f"\n      {line}", end="", flush=True)


def main(path: Path) -> None:
    job = Job.model_validate_json(path.read_text(encoding="utf-8"))
    # Python sees Ctrl-C only when the builder calls it, which may be minutes later.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    built, refused, error = None, None, None
    try:
        built = build(find(job.builder), job.twin, job.plan, job.profiles, job.options, _say)
    except Refused as problem:
        refused = (problem.reason, problem.node, problem.operator)
    except ExportError as problem:
        error = str(problem)
    answer = Answer(built=built, refused=refused, error=error, peak_memory_mb=_peak_memory_mb())
    path.with_name(ANSWER).write_text(answer.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
