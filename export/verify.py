"""`python -m export verify BUNDLE`: is it what it was, and does it do here what it did where it was written?"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx

from export.errors import ExportError
from export.laws import check_foreign_laws, check_laws, check_plugin_free, takes_sizes
from export.measure import compare_rows
from export.parity import FULL_UP_TO, inputs_for, rows_alone
from export.precision.proof import held
from export.progress import Progress
from export.source import Exportable, build, load_weights
from export.twin import check_settled, pictures_of
from server.bundle_files import MODEL_FILE, TWIN_FILE, sha256_of
from server.cores import usable_cores
from server.engines import load_engine
from server.loading import prove_golden
from server.manifest import Bundle, read_bundle, read_manifest
from server.preprocess import FixedInput

EPILOG = """\
checked, in this order:
  files     every file is there, and has the sha256 that the manifest states
  graph     it keeps the laws: a free batch axis, standard operators, no shape that depends on data
  golden    ONNX Runtime on this machine answers the recorded sample as recorded
  rows      at every batch size of the manifest, a row equals its image alone
  PyTorch   with --weights: all outputs again, against the model that the weights make
  twin      all this again for model.trt.onnx where the bundle has it, and that nothing in it needs a plugin
  engine    of model.plan its sha256 alone; the server asks it for the golden sample, on its GPU

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
    weighed = args.weights is not None
    progress = Progress(steps=4 + weighed + (0 if read_manifest(folder).twin is None else 3 + 2 * weighed))
    with progress.step(f"reading {args.bundle} and checking sha256"):
        bundle = read_bundle(folder)
    manifest = bundle.manifest
    path = folder / MODEL_FILE
    with progress.step("checking the graph's laws"):
        _check_graph(bundle, path)
    _prove(bundle, path, args.weights, progress)
    if manifest.twin is not None:
        twin = folder / TWIN_FILE
        with progress.step("checking the laws of the graph for TensorRT"):
            _check_graph(bundle, twin)
            check_plugin_free(twin)
        _prove(bundle, twin, args.weights, progress)
        if weighed:
            with progress.step("looking for what cluster-NMS leaves undecided"):
                model = _model_of(bundle, args.weights)
                check_settled(model, manifest.twin.nms_rounds, pictures_of(model, _batches(bundle)))
    progress.print_table()
    print(f"{manifest.name}/{manifest.version} is intact, and answers here as it promised")
    if manifest.plan is not None:
        print("model.plan is intact, and was not run; python -m server --engine tensorrt does, on its GPU")


def _prove(bundle: Bundle, path: Path, weights: Path | None, progress: Progress) -> None:
    """One graph of a bundle on this machine: the golden sample, rows against their images alone, and PyTorch."""
    manifest, batches = bundle.manifest, _batches(bundle)
    engine = load_engine(path, usable_cores())
    try:
        with progress.step(f"answering the golden sample on {engine.name}"):
            prove_golden(bundle, engine)
        with progress.step(f"comparing rows with their images alone at batch {', '.join(map(str, batches))}"):
            if isinstance(manifest.input, FixedInput):
                compare_rows(engine, manifest.input, takes_sizes(onnx.load(path, load_external_data=False)), batches)
            else:
                for batch in batches:
                    inputs = inputs_for(manifest.input, batch, seed=batch, full=batch <= FULL_UP_TO)
                    rows_alone(engine, inputs, engine.run(inputs))
        if weights is not None:
            with progress.step(f"comparing with PyTorch and {weights}"):
                held(_model_of(bundle, weights), engine, batches, manifest.precision)
    finally:
        engine.close()


def _batches(bundle: Bundle) -> list[int]:
    return [run.batch for run in bundle.manifest.parity.runs]


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


def _model_of(bundle: Bundle, weights: Path) -> Exportable:
    """
    Raises:
        ExportError: no PyTorch model is known, or not of these weights.
    """
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
    return model
