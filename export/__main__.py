"""`python -m export MODULE:BUILDER --weights FILE --out DIR`: write a bundle, proven equal to its PyTorch model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import torch
except ModuleNotFoundError:
    print("export needs PyTorch, which serving does without: run 'make setup', or see 'Bring a model' in README.md")
    sys.exit(2)

import onnx

from export.bundle import whole_or_nothing, write_golden, write_manifest
from export.errors import ExportError
from export.graph import write_graph
from export.parity import compare
from export.progress import Progress
from export.source import build, load_weights
from server.cores import usable_cores
from server.engines import load_engine
from server.errors import StartupError
from server.manifest import MODEL_FILE, sha256_of

EXAMPLE = """\
example:
  python -m export models.unet:nuclei_unet --weights models/weights/nuclei.safetensors --out bundles/nuclei/1
  python -m server --bundles bundles

The bundle is refused, and nothing written, unless ONNX Runtime answers like PyTorch at batch 1, 2, 3 and --max-batch,
and every row of a batch equals its image alone.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a trained PyTorch model into a bundle that the server loads.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODULE:BUILDER", help="who builds the model, as in models.unet:nuclei_unet")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="checkpoint, safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="<bundles>/<model>/<version>")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="one class name a line; the builder's if not given"
    )
    parser.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="largest batch that is proven (default 8)"
    )
    parser.add_argument(
        "--score-threshold", type=float, metavar="T", help="default threshold; the builder's if not given"
    )
    parser.add_argument("--replace", action="store_true", help="overwrite the bundle in --out")
    return parser.parse_args(argv)


def export(args: argparse.Namespace) -> None:
    """
    Raises:
        ExportError, StartupError: nothing was written.
    """
    if args.max_batch < 1:
        raise ExportError(f"--max-batch {args.max_batch} should be at least 1")
    progress = Progress(steps=5)
    with whole_or_nothing(args.out, args.replace) as folder:
        with progress.step(f"building {args.model} and loading {args.weights}"):
            model = build(args.model)
            load_weights(model, args.weights)
            classes = _classes(args.classes, model.classes)
        with progress.step("writing the graph"):
            write_graph(model, folder / MODEL_FILE)
        batches = sorted({1, 2, 3, args.max_batch} & set(range(1, args.max_batch + 1)))
        with progress.step(f"comparing with PyTorch at batch {', '.join(map(str, batches))}"):
            engine = load_engine(folder / MODEL_FILE, usable_cores())
            parity = compare(model, engine, batches)
            engine.close()
        with progress.step("recording the golden sample"):
            write_golden(model, folder)
        with progress.step("sealing the manifest"):
            threshold = model.score_threshold if args.score_threshold is None else args.score_threshold
            if not 0 <= threshold <= 1:
                raise ExportError(f"--score-threshold {threshold} should lie in 0..1")
            manifest = write_manifest(
                model,
                folder,
                args.out,
                max_batch=args.max_batch,
                classes=classes,
                score_threshold=threshold,
                parity=parity,
                provenance={
                    "builder": args.model,
                    "weights_sha256": sha256_of(args.weights),
                    "torch": torch.__version__,
                    "onnx": onnx.__version__,
                },
            )
    print(f"\nwrote {args.out} in {progress.seconds():.0f} s: kind {manifest.masks.kind}, {len(classes)} classes")
    print(f"{'batch':>7}  {'input':>11}  {'largest error':>28}  {'row against alone':>18}")
    for run in parity.runs:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in run.largest_error.items())
        print(f"{run.batch:>7}  {run.input_size[0]:>5}x{run.input_size[1]:<5}  {errors:>28}  {run.alone_error:>18g}")
    print(f"serve it: python -m server --bundles {args.out.parent.parent}")


def _classes(path: Path | None, built: tuple[str, ...]) -> tuple[str, ...]:
    if path is None:
        return built
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"cannot read --classes {path}: {error}") from None
    if len(names) != len(built) or len(set(names)) != len(names):
        raise ExportError(
            f"{path} names {len(names)} classes, {len(set(names))} of them different; the model has {len(built)}"
        )
    return names


def main(argv: list[str]) -> int:
    """0 when the bundle stands, 1 when it was refused."""
    try:
        export(parse(argv))
    except (ExportError, StartupError) as error:
        print(f"not exported: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
