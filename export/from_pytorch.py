"""`python -m export MODULE:BUILDER --weights FILE --out DIR`: a bundle from a trained model, proven equal to it."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch

from export.bundle import (
    check_options,
    print_bundle,
    proven_batches,
    read_classes,
    whole_or_nothing,
    write_golden,
    write_manifest,
)
from export.errors import ExportError
from export.graph import write_graph
from export.laws import tensor_shapes
from export.parity import compare, inputs_for, run_model
from export.progress import Progress
from export.source import build, load_weights
from server.cores import usable_cores
from server.engines import load_engine
from server.manifest import MODEL_FILE, sha256_of

EXAMPLE = """\
example:
  python -m export models.unet:nuclei_unet --weights models/weights/nuclei.safetensors --out bundles/nuclei/1
  python -m server --bundles bundles

The bundle is refused, and nothing written, unless ONNX Runtime answers like PyTorch at batch 1, 2, 3 and --max-batch,
and every row of a batch equals its image alone.

An ONNX file that exists already becomes a bundle with another command: python -m export adopt --help
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
    check_options(args.max_batch, args.score_threshold)
    progress = Progress(steps=5)
    with whole_or_nothing(args.out, args.replace) as folder:
        with progress.step(f"building {args.model} and loading {args.weights}"):
            model = build(args.model)
            load_weights(model, args.weights)
            classes = model.classes if args.classes is None else _renamed(args.classes, len(model.classes))
        with progress.step("writing the graph"):
            write_graph(model, folder / MODEL_FILE)
        batches = proven_batches(args.max_batch)
        with progress.step(f"comparing with PyTorch at batch {', '.join(map(str, batches))}"):
            engine = load_engine(folder / MODEL_FILE, usable_cores())
            parity = compare(model, engine, batches)
            engine.close()
        with progress.step("recording the golden sample"):
            inputs = inputs_for(model, 1, seed=7)
            write_golden(folder, inputs, run_model(model, inputs))
        with progress.step("sealing the manifest"):
            threshold = model.score_threshold if args.score_threshold is None else args.score_threshold
            check_options(args.max_batch, threshold)
            manifest = write_manifest(
                folder,
                args.out,
                input=model.input,
                masks=model.masks,
                outputs=tensor_shapes(folder / MODEL_FILE),
                max_batch=args.max_batch,
                classes=classes,
                score_threshold=threshold,
                origin="pytorch",
                precision="fp32",
                parity=parity,
                provenance={
                    "builder": args.model,
                    "weights_sha256": sha256_of(args.weights),
                    "torch": torch.__version__,
                    "onnx": onnx.__version__,
                },
            )
    print_bundle(manifest, args.out, progress.seconds())


def _renamed(path: Path, wanted: int) -> tuple[str, ...]:
    names = read_classes(path)
    if len(names) != wanted:
        raise ExportError(f"{path} names {len(names)} classes; the model has {wanted}")
    return names
