"""`python -m export plan BUNDLE`: a TensorRT engine from the bundle's plugin-free twin, with its passport."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import onnx

from export.bundle import whole_or_nothing
from export.errors import ExportError
from export.laws import takes_sizes
from export.progress import Progress
from export.tensorrt import naming
from export.tensorrt.building import Refused
from export.tensorrt.options import Options
from export.tensorrt.package import Package, compute_capabilities, find, gpu
from export.tensorrt.passport import in_words, passport_for
from export.tensorrt.profiles import profiles_for, read_best
from export.tensorrt.worker import build_apart
from server.bundle_files import MANIFEST_FILE, PLAN_FILE, TWIN_FILE, sha256_of
from server.manifest import Manifest, read_bundle

EPILOG = """\
The bundle needs model.trt.onnx, which 'python -m export MODULE:BUILDER ... --tensorrt' writes. The engine has the
precision of the bundle; it takes every size that the manifest's input can give, and batches up to its max_batch.

which builder, and how to get it:
  tensorrt-rtx   GeForce and RTX cards from Turing on (compute capability 7.5 to 12.1, no data-centre Hopper or
                 Blackwell). Builds on any machine, without a GPU too.      pip install tensorrt-rtx-cu13
  tensorrt       every other NVIDIA GPU, and these. Builds on the GPU that will run the engine, and nowhere else.
                                                                            pip install tensorrt-cu13

examples:
  python -m export plan bundles/nuclei/1
  python -m export plan bundles/coco/1 --best 8x800x1088 --level 5 --timing-cache ~/.cache/tensorrt.cache
  python -m export plan bundles/coco/1 --builder tensorrt-rtx --compute-capability 8.6,8.9
  python -m export plan bundles/coco/1 --max-batch 2 --workspace 2048       (for a GPU with little memory)
  python -m server --bundles bundles --engine tensorrt

What it computes in is read from the layers of the engine that was built. If the manifest's precision is not there, no
engine is written. Whether its answers are right shows when it runs: the server asks it for the golden sample before it
says ready.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export plan",
        description="Build a TensorRT engine, model.plan, into a bundle.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="<bundles>/<model>/<version>")
    parser.add_argument(
        "--builder", choices=("auto", "tensorrt", "tensorrt-rtx"), default="auto", help="default: the one installed"
    )
    parser.add_argument(
        "--best",
        metavar="[Bx]HxW",
        help="batch and size of the input to tune for (default: the largest batch, a photograph of 4:3)",
    )
    parser.add_argument(
        "--max-batch", type=int, metavar="N", help="largest batch, at most the manifest's, which is the default"
    )
    parser.add_argument(
        "--level", type=int, choices=range(6), default=3, help="how long to search for fast kernels, 0 to 5 (default 3)"
    )
    parser.add_argument(
        "--workspace",
        type=int,
        metavar="MB",
        help="memory of the GPU that a layer may use while it runs (default: all)",
    )
    parser.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="keep measured times of kernels here: the next build is quick"
    )
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="tensorrt: later versions of the same major may run it, with this one's lean runtime; a little slower",
    )
    parser.add_argument(
        "--hardware",
        choices=("none", "ampere_plus", "same_compute_capability"),
        default="none",
        help="tensorrt: which other GPUs may run it (default none: this model of GPU alone); fewer kernels, slower",
    )
    parser.add_argument(
        "--compute-capability",
        metavar="CC,...",
        help="tensorrt-rtx: which GPUs will run it, as in 8.6,12.0 (default: 8.0 and all later that it knows)",
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="fp32 products may drop to 10 bits of mantissa: faster, and no longer as the graph answers",
    )
    parser.add_argument("--replace", action="store_true", help="write over the engine that is there")
    return parser.parse_args(argv)


def plan(args: argparse.Namespace) -> None:
    """
    Raises:
        ExportError, StartupError: no engine was written, and the bundle is as it was.
    """
    folder: Path = args.bundle.resolve()
    package = find(args.builder)
    here = gpu()
    options = options_of(args, compute_capabilities(package, _listed(args.compute_capability), here))
    options.check(package)
    progress = Progress(steps=4)
    with progress.step(f"reading {args.bundle} and checking sha256"):
        manifest = read_bundle(folder, leave_out={PLAN_FILE}).manifest  # the old engine is not opened
        check_bundle(args.bundle, manifest, args.replace)
        twin = folder / TWIN_FILE
        inputs = ["images", "sizes"] if takes_sizes(onnx.load(twin, load_external_data=False)) else ["images"]
        batch = _max_batch(args.max_batch, manifest.max_batch)
        profiles = profiles_for(manifest.input, inputs, batch, read_best(args.best) if args.best else None)
    with whole_or_nothing(folder, replace=True) as writing:
        engine = writing / PLAN_FILE
        with progress.step(f"building with {package.name} {package.version}"):
            try:
                built, memory = build_apart(package, twin, engine, profiles, options)
            except Refused as refused:
                raise ExportError(refusal(package, twin, refused)) from None
        with progress.step("reading what its layers compute in"):
            passport = passport_for(
                package,
                manifest,
                built,
                profiles=profiles,
                options=options,
                here=here,
                peak_memory_mb=memory,
                twin_sha256=manifest.files[TWIN_FILE],
                plan_sha256=sha256_of(engine),
            )
        with progress.step("sealing the manifest"):
            shutil.copytree(folder, writing, dirs_exist_ok=True, ignore=shutil.ignore_patterns(PLAN_FILE))
            files = dict(sorted({**manifest.files, PLAN_FILE: passport.plan_sha256}.items()))
            sealed = Manifest.model_validate(manifest.model_dump() | {"files": files, "plan": passport.model_dump()})
            (writing / MANIFEST_FILE).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")
    progress.print_table()
    print(f"the builder itself: {built.seconds:.1f} s, {memory:.0f} MB at most\n")
    for warning in built.warnings:
        print(f"{package.name} warns: {warning}")
    print(f"{args.bundle / PLAN_FILE}, {built.plan_bytes / 1e6:.1f} MB")
    print("\n".join(in_words(passport)))


def options_of(args: argparse.Namespace, capabilities: list[str]) -> Options:
    """
    Raises:
        ExportError: a number of the command line lies outside its range.
    """
    if args.workspace is not None and args.workspace < 1:
        raise ExportError(f"--workspace {args.workspace} should be at least 1, in megabytes")
    return Options(
        compute_capabilities=capabilities,
        hardware=args.hardware,
        version_compatible=args.version_compatible,
        level=args.level,
        workspace_mb=args.workspace,
        tf32=args.tf32,
        timing_cache=args.timing_cache.expanduser().resolve() if args.timing_cache else None,
    )


def check_bundle(path: Path, manifest: Manifest, replace: bool) -> None:
    """
    Raises:
        ExportError: there is nothing to build from, or an engine already.
    """
    if manifest.twin is None or TWIN_FILE not in manifest.files:
        raise ExportError(
            f"{path} holds no {TWIN_FILE}, which TensorRT builds from; export it again with --tensorrt "
            "(an adopted graph has none: its PyTorch model would be needed)"
        )
    if manifest.plan is not None and not replace:
        raise ExportError(f"{path} has an engine for {manifest.plan.package} already; give --replace")


def refusal(package: Package, twin: Path, refused: Refused) -> str:
    """One sentence: the operator, the node, the module that it came from, and why."""
    named = (refused.node, refused.operator) if refused.node else naming.operator_of(twin, refused.reason)
    what = f"{package.name} {package.version} refuses"
    if named is None:
        return f"{what} {TWIN_FILE}: {refused.reason}"
    node, operator = named
    module = naming.module_of(twin, node)
    where = f"node '{node}'" + (f", {module}" if module else "")
    return f"{what} the operator {operator} ({where}): {refused.reason}; write that module without it, for --tensorrt"


def _max_batch(asked: int | None, promised: int) -> int:
    if asked is None:
        return promised
    if not 1 <= asked <= promised:
        raise ExportError(f"--max-batch {asked} should lie in 1..{promised}, which the bundle was proven for")
    return asked


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []
