"""`python -m export conform --golden DIR [--only NAME]`: every reference case, through ours, as a table."""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from export.conform.cases import Group, read_systems
from export.conform.compare import compare
from export.conform.conventions import CONVENTIONS
from export.conform.systems import find_system
from export.conform.table import Row, exit_code, header, line, summary
from export.errors import ExportError
from export.progress import peak_memory_mb, silence_exporter
from server.cores import usable_cores

EPILOG = """\
A case is a pair of files that somebody recorded with the original code base:
  <DIR>/<system>/<case>.safetensors     sd/ weights, in/ picture, raw/ intermediate tensors, det/ detections
  <DIR>/<system>/<case>.meta.json       its settings

The name of the folder says which code base it was. Folders this version does not know are listed and do not fail.

examples:
  python -m export conform --golden ../shared/golden
  python -m export conform --golden ../shared/golden --only 'torchvision_*'
  python -m export conform --golden ../shared/golden --only mmdet_mask_rcnn_r50_fpn/c1

exit status: 0 when all that ran passes, 1 when a row fails, 2 when the question makes no sense
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export conform",
        description="Run the reference cases of other implementations: raw tensors, detections and masks, "
        "in PyTorch, in the exported graph and in the one for TensorRT.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--golden", type=Path, required=True, metavar="DIR", help="folder of <system>/<case> files")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a system, or system/case; * stands for anything; may repeat"
    )
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="cases at a time (default: one on every core)")
    return parser.parse_args(argv)


def conform(args: argparse.Namespace) -> int:
    """
    Returns:
        0 when every row passes, 1 otherwise.

    Raises:
        ExportError: nothing there to run.
    """
    began = time.monotonic()
    groups = chosen(read_systems(args.golden), args.only or [])
    if args.jobs < 0:
        raise ExportError(f"--jobs {args.jobs} should be at least 1, or 0 for one on every core")
    jobs = min(args.jobs or usable_cores(), len(groups))
    print(f"{len(groups)} cases, {jobs} at a time\n\n{header()}", flush=True)
    rows: list[Row] = []
    memory_mb = 0.0
    for number, done in enumerate(_outcomes(groups, jobs), start=1):
        rows += done.rows
        memory_mb = max(memory_mb, done.memory_mb)
        for row in done.rows:
            print(line(row))
        if all(row.verdict == "not run" for row in done.rows):
            continue
        took = f"{done.seconds:.1f} s, {done.memory_mb:.0f} MB"
        print(f"[{number}/{len(groups)}] {time.monotonic() - began:.0f} s; this one took {took}", flush=True)
    print()
    print(summary(rows, time.monotonic() - began, memory_mb))
    return exit_code(rows)


@dataclass(frozen=True)
class Outcome:
    """Of one group."""

    rows: list[Row]
    seconds: float
    memory_mb: float  # most that its process ever held


def outcome(group: Group) -> Outcome:
    """Run a group to its end; what stops it is a row that fails, so that the others go on."""
    began = time.monotonic()
    rows: list[Row] = []
    try:
        rows.extend(_rows(group))
    except Exception as error:  # a case that nobody has seen may break anything, and the rest should still be told
        said = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        rows.append(Row(group.system, group.name, "stopped", f"{type(error).__name__}: {said}", "FAIL"))
    return Outcome(rows, time.monotonic() - began, peak_memory_mb())


def _rows(group: Group) -> Iterator[Row]:
    convention, system = CONVENTIONS.get(group.system), find_system(group.system)
    if convention is not None:
        for case in group.cases:
            yield from convention(case)
    elif system is not None:
        with tempfile.TemporaryDirectory() as folder:
            yield from compare(system, group, Path(folder))
    else:
        yield Row(group.system, group.name, "", "a system that this version does not have", "not run")


def _begin() -> None:
    """Of every process."""
    torch.set_num_threads(1)
    silence_exporter()


def _outcomes(groups: list[Group], jobs: int) -> Iterator[Outcome]:
    """In the order of the groups. Writing a graph keeps one core busy, so several are written at the same time."""
    if jobs < 2:
        yield from map(outcome, groups)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin) as pool:
        try:
            yield from pool.map(outcome, groups)
        except BrokenProcessPool:
            raise ExportError(
                "a process died, of too little memory perhaps; run fewer at a time, as in --jobs 1"
            ) from None


def chosen(systems: dict[str, list[Group]], only: Iterable[str]) -> list[Group]:
    """The groups that --only names; all of them without it. A case brings its mates along.

    Raises:
        ExportError: a name fits nothing.
    """
    groups = [group for of_system in systems.values() for group in of_system]
    patterns = list(only)
    found: set[int] = set()
    for pattern in patterns:
        fits = {i for i, group in enumerate(groups) if any(_fits(group, name, pattern) for name in _names(group))}
        if not fits:
            raise ExportError(f"--only {pattern} fits none of the {len(systems)} systems: {', '.join(sorted(systems))}")
        found |= fits
    return [group for i, group in enumerate(groups) if i in found or not patterns]


def _names(group: Group) -> list[str]:
    return [group.name, *(case.name for case in group.cases)]


def _fits(group: Group, name: str, pattern: str) -> bool:
    return fnmatchcase(group.system, pattern) or fnmatchcase(f"{group.system}/{name}", pattern)
