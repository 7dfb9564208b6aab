"""`python -m export verify BUNDLE`: is it what it was, and does it do here what it did where it was written?"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx

from export.errors import ExportError
from export.laws import check_foreign_laws, check_laws, takes_sizes
from export.measure import compare_rows
from export.parity import FULL_UP_TO, compare, inputs_for, rows_alone
from export.progress import Progress
from export.source import build, load_weights
from server.cores import usable_cores
from server.engines import Engine, load_engine
from server.manifest import MODEL_FILE, Bundle, read_bundle, sha256_of
from server.preprocess import FixedInput
from server.repository import prove_golden

EPILOG = """\
checked, in this order:
  files     every file is there, and has the sha256 that the manifest states
  graph     it keeps the laws: a free batch axis, standard operators, no shape that depends on data
  golden    ONNX Runtime on this machine answers the recorded sample as recorded
  rows      at every batch size of the manifest, a row equals its image alone
  PyTorch   with --weights: all outputs again, against the model that the weights make

examples:
  python -m export verify bundles/nuclei/1
  python -m export verify bundles/nuclei/1 --weights models/weights/nuclei.safetensors

A sha256 tells whether a file is intact, not where it came from.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export verify",
        description="Check a bundle again, on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="<bundles>/<model>/<version>")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="the checkpoint it was exported from: compare with PyTorch too"
    )
    return parser.parse_args(argv)


def verify(args: argparse.Namespace) -> None:
    """
    Raises:
        ExportError, StartupError: something is not as it was promised.
    """
    folder: Path = args.bundle.resolve()  # its name and version are those of its folders
    progress = Progress(steps=4 + (args.weights is not None))
    with progress.step(f"reading {args.bundle} and checking sha256"):
        bundle = read_bundle(folder)
    manifest = bundle.manifest
    path = folder / MODEL_FILE
    with progress.step("checking the graph's laws"):
        _check_graph(bundle, path)
    engine = load_engine(path, usable_cores())
    try:
        with progress.step(f"answering the golden sample on {engine.name}"):
            prove_golden(bundle, engine)
        batches = [run.batch for run in manifest.parity.runs]
        with progress.step(f"comparing rows with their images alone at batch {', '.join(map(str, batches))}"):
            if isinstance(manifest.input, FixedInput):
                compare_rows(engine, manifest.input, takes_sizes(onnx.load(path, load_external_data=False)), batches)
            else:
                for batch in batches:
                    inputs = inputs_for(manifest.input, batch, seed=batch, full=batch <= FULL_UP_TO)
                    rows_alone(engine, inputs, engine.run(inputs))
        if args.weights is not None:
            with progress.step(f"comparing with PyTorch and {args.weights}"):
                _compare_with_pytorch(bundle, engine, args.weights, batches)
    finally:
        engine.close()
    progress.print_table()
    print(f"{manifest.name}/{manifest.version} is intact, and answers here as it promised")


def _check_graph(bundle: Bundle, path: Path) -> None:
    legend = bundle.manifest.masks.legend
    if bundle.manifest.golden.origin == "pytorch":
        check_laws(path, list(legend))
        return
    graph = onnx.load(path)
    check_foreign_laws(graph)
    answered = sorted(value.name for value in graph.graph.output)
    if answered != sorted(legend):
        raise ExportError(f"the graph answers {answered}, the manifest promises {sorted(legend)}; adopt it again")


def _compare_with_pytorch(bundle: Bundle, engine: Engine, weights: Path, batches: list[int]) -> None:
    provenance = bundle.manifest.provenance
    if "builder" not in provenance:
        raise ExportError("the bundle was adopted as a graph, no PyTorch model is known; leave out --weights")
    if not weights.is_file():
        raise ExportError(f"{weights} does not exist; give the checkpoint that the bundle was exported from")
    found, stated = sha256_of(weights), provenance["weights_sha256"]
    if found != stated:
        raise ExportError(
            f"{weights} has sha256 {found[:12]}..., the bundle was exported from {stated[:12]}...; "
            "give that checkpoint, or export this one"
        )
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in provenance.get("options", {}).items()}
    model = build(provenance["builder"], **options)
    load_weights(model, weights)
    compare(model, engine, batches)
