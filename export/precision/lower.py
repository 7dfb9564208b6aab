"""The steps that `--precision`, `--calibrate` and `--check` add to an export.

asked = asked_for(args)                     the options, checked before any work
lowered = lower(asked, model, progress)     fp16: the network to write; fp32 and int8: the same
... graphs are written ...
lowered.to_int8(path, TENSORRT, progress)   int8: the file anew
... parity, golden sample ...
check(asked, ...)                           AP before and after
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.bundle import Precision
from export.errors import ExportError
from export.graph import write_graph
from export.precision import accuracy, half, sensitivity
from export.precision.layers import layers_of
from export.precision.pictures import drawn, list_pictures, placed, spread
from export.precision.proof import FARTHEST
from export.precision.quantise import Scheme, calibrate, prepared, quantise
from export.progress import Progress
from export.source import Exportable
from server.bundle_files import MODEL_FILE
from server.cores import usable_cores
from server.distance import distance
from server.engines import Engine, Tensors, load_engine
from server.manifest import Lowered

PROBES = 3  # calibration pictures that single modules and layers are tried on


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says of precision."""

    precision: Precision
    pictures: list[Path]
    check: tuple[Path, Path] | None  # annotations, and the folder of their pictures
    accept_loss: bool

    @property
    def steps(self) -> int:
        """That it adds to the export, for each graph once."""
        return {"fp32": 0, "fp16": 1, "int8": 1}[self.precision] + (self.check is not None)


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--precision` and what goes with it."""
    group = parser.add_argument_group("precision", "docs/precision.md says what each costs and gains")
    group.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="of the graph's numbers (default fp32)"
    )
    group.add_argument(
        "--calibrate",
        type=Path,
        metavar="IMAGES",
        help="folder of pictures like those that will be served; int8 takes its ranges from up to 128 of them, fp16 "
        "looks for what must stay in fp32",
    )
    group.add_argument(
        "--check",
        type=Path,
        metavar="ANNOTATIONS",
        help="COCO instances: measure AP in fp32 and as asked, needs --images",
    )
    group.add_argument("--images", type=Path, metavar="DIR", help="the pictures of --check")
    group.add_argument(
        "--accept-loss",
        action="store_true",
        help="write the bundle though AP falls by more than 0.001 (fp16) or 0.005 (int8)",
    )


def asked_for(args: argparse.Namespace) -> Asked:
    """
    Raises:
        ExportError: options that do not go together, or a folder without pictures.
    """
    if (args.check is None) != (args.images is None):
        missing = "--images, the folder of its pictures" if args.images is None else "--check, their annotations"
        raise ExportError(f"{'--check' if args.images is None else '--images'} needs {missing}")
    if args.accept_loss and args.check is None:
        raise ExportError("--accept-loss is about what --check measures; give --check and --images, or leave it out")
    if args.precision == "fp32" and args.calibrate is not None:
        raise ExportError("--calibrate is for --precision int8 and fp16; fp32 needs none")
    if args.precision == "int8" and args.calibrate is None:
        raise ExportError(
            "--precision int8 needs --calibrate with a folder of some tens of pictures like those that will be served"
        )
    pictures = [] if args.calibrate is None else list_pictures(args.calibrate)
    check = None if args.check is None else (args.check, args.images)
    return Asked(args.precision, pictures, check, args.accept_loss)


@dataclass(slots=True)
class Lowering:
    """A network on its way to fewer bits."""

    asked: Asked
    model: Exportable  # to be written
    original: Exportable  # in fp32
    records: dict[str, Lowered] = field(default_factory=dict)  # by file

    def to_int8(self, path: Path, scheme: Scheme, progress: Progress) -> None:
        """Where int8 was asked for, quantise a graph file in place.

        Raises:
            ExportError: a picture cannot be read, or nothing is left to quantise.
        """
        if self.asked.precision == "int8":
            with progress.step(f"quantising {path.name} with {len(self.asked.pictures)} pictures"):
                self.records[path.name] = _to_int8(path, scheme, self.asked.pictures, self.original)

    def applied(self, model: Exportable, name: str) -> Exportable:
        """Where fp16 was asked for, another form of the network with the same parts in it, for the file `name`."""
        if self.asked.precision != "fp16":
            return model
        record = next(iter(self.records.values()))
        self.records[name] = record
        return half.to_half(model, record.lowered)


def lower(asked: Asked, model: Exportable, name: str, progress: Progress) -> Lowering:
    """
    Args:
        name: of the file that the network is written to.

    Raises:
        ExportError: fp16 was asked for, and no module may compute in it.
    """
    if asked.precision != "fp16":
        return Lowering(asked, model, model)
    with progress.step("finding what may compute in fp16"):
        probes = list(placed(spread(asked.pictures, PROBES), model.input)) if asked.pictures else drawn(model.input)
        found = half.find_half(model, probes, tell=_tell)
    record = Lowered(
        pictures=len(probes),
        scheme="fp16 weights and numbers inside modules, fp32 between them",
        lowered=found.parts,
        kept=found.islands,
        alone=found.measured,
        bound=half.BOUND,
        distance=found.distance,
    )
    return Lowering(asked, found.model, model, {name: record})


def check_first(asked: Asked, classes: Sequence[str]) -> None:
    """Read the annotations once before the long work begins.

    Raises:
        ExportError: they do not fit.
    """
    if asked.check is not None:
        accuracy.read_annotations(*asked.check, classes)


def in_fp32(lowering: Lowering, path: Path) -> bytes | None:
    """The graph at `path` as it is in fp32, where AP is to be compared with it."""
    if lowering.asked.check is None or lowering.asked.precision == "fp32":
        return None
    if lowering.asked.precision == "int8":
        return path.read_bytes()  # not quantised yet
    with tempfile.TemporaryDirectory() as folder:
        write_graph(lowering.original, Path(folder) / path.name)
        return (Path(folder) / path.name).read_bytes()


def check(
    asked: Asked,
    lowering: Lowering,
    classes: Sequence[str],
    engines: Sequence[Engine],
    fp32: bytes | None,
    progress: Progress,
) -> dict[str, Any] | None:
    """AP in fp32 and as asked, for the manifest; None where nobody asked.

    Args:
        engines: on the graph, and on the one for TensorRT where that was written: in int8 it is quantised otherwise.
        fp32: of `in_fp32`.

    Raises:
        ExportError: the annotations do not fit, or AP fell too far.
    """
    if asked.check is None:
        return None
    path, folder = asked.check
    annotated = accuracy.read_annotations(path, folder, classes)
    with progress.step(f"measuring AP on {len(annotated.index['images'])} pictures"):
        began = time.monotonic()
        served = accuracy.Served(lowering.original.input, lowering.original.masks, classes)
        measured = engines if asked.precision == "int8" else engines[:1]
        after = [accuracy.measure(served, engine, annotated, asked.precision) for engine in measured]
        before = after[0]
        if fp32 is not None:
            with _engine_on(fp32) as reference:
                before = accuracy.measure(served, reference, annotated, "fp32")
        return accuracy.judged(asked.precision, before, after, annotated, asked.accept_loss, time.monotonic() - began)


def _to_int8(path: Path, scheme: Scheme, pictures: list[Path], model: Exportable) -> Lowered:
    graph = prepared(path)
    layers = layers_of(graph)
    legend = model.masks.legend
    ranges = calibrate(graph, layers, placed(pictures, model.input), _tell)
    probes: list[Tensors] = list(placed(spread(pictures, PROBES), model.input))
    found = sensitivity.measure(graph, layers, ranges, scheme, probes, legend, tell=_tell)
    kept = [layer for layer in layers if layer.weight not in found.left_out]
    if not kept:
        worst = found.left_out[0]
        raise ExportError(
            f"no layer can be int8 within {sensitivity.BOUND:g} of fp32, {worst} alone lies {found.alone[worst]:.2g} "
            "off; give pictures like those that will be served, or use --precision fp16"
        )
    before = load_engine(path, usable_cores())
    wanted = [before.run_alone(probe) for probe in probes]
    before.close()
    small = path.with_name(f"{path.stem}.int8.onnx")
    quantise(graph, small, ranges, kept, scheme)
    after = load_engine(small, usable_cores())
    apart = distance([after.run_alone(probe) for probe in probes], wanted, legend)
    after.close()
    os.replace(small, path)
    if not apart <= FARTHEST["int8"]:
        raise ExportError(
            f"the answers in int8 lie {apart:.2g} from fp32 on {len(probes)} of the calibration pictures, more than "
            f"{FARTHEST['int8']:g}; use --precision fp16"
        )
    return Lowered(
        pictures=len(pictures),
        scheme=scheme.name,
        lowered=list(dict.fromkeys(layer.weight for layer in kept)),
        kept={
            weight: f"error {found.alone[weight]:.2g} alone, {found.everything:.2g} with all layers in int8; "
            f"allowed {sensitivity.BOUND:g}"
            for weight in found.left_out
        },
        alone=found.alone,
        bound=sensitivity.BOUND,
        distance=apart,
    )


@contextmanager
def _engine_on(graph: bytes) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        path.write_bytes(graph)
        engine = load_engine(path, usable_cores())
        try:
            yield engine
        finally:
            engine.close()


def _tell(text: str) -> None:
    print(f" {text}", end="", flush=True)
