"""`python -m export adopt FILE.onnx --layout maskserve --out DIR`: a bundle from a graph that exists already.

No PyTorch model stands behind it, so nothing is compared with one. What can be known is measured: the laws of the file,
that every row of a batch equals its image alone, that answers are finite and of fixed shapes, and that they mean what
the representation says. The golden sample is ONNX Runtime's own answer, here and now.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import get_args

import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pydantic import ValidationError

from export.bundle import (
    Precision,
    check_options,
    print_bundle,
    proven_batches,
    read_classes,
    whole_or_nothing,
    write_golden,
    write_manifest,
)
from export.errors import ExportError
from export.laws import check_foreign_laws, dtype_of, input_size, takes_sizes
from export.measure import alike, check_rows, compare_rows, largest_label, sample
from export.progress import Progress
from export.spare import spare
from server.bundle_files import MODEL_FILE, sha256_of
from server.cores import usable_cores
from server.engines import Tensors, load_engine
from server.masks import AnyMasks, Masks
from server.preprocess import FixedInput

GUESSED_CLASSES = 80  # as many as COCO has

HELP = """\
A layout says what a graph's tensors mean. One so far:

  maskserve   input   images  uint8 (B, h, w, 3), RGB; the graph itself casts, transposes and normalises.
                      B free, h and w fixed. Perhaps sizes, int32 (B, 2): true (height, width) in the padding.
              outputs of a representation, which is told by their names:
{legends}
              N rows an image, best score first; rows with score <= 0 are unused. boxes: x1 y1 x2 y2 in input
              pixels. labels: int32, from 0. The rest float32.

Representations have parameters, --mask-rule cells=corner --mask-rule padding=1 for YOLACT, --mask-rule
paste=torchvision for a Mask R-CNN of torchvision or maskrcnn-benchmark: server/masks/ explains them.

example:
  python -m export adopt yolact.onnx --layout maskserve --classes names.txt --out bundles/yolact/1 \\
      --resize stretch --mask-rule cells=corner --mask-rule padding=1
  python -m server --bundles bundles

The bundle is refused, and nothing written, unless the graph runs at batch 1, 2, 3 and --max-batch, every row of a batch
equals its image alone, and the answers are finite and of fixed shapes.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    legends = "\n".join(
        f"                {_kind(masks):<15} {', '.join(f'{name} ({axes})' for name, axes in masks.legend.items())}"
        for masks in _representations()
    )
    parser = argparse.ArgumentParser(
        prog="python -m export adopt",
        description="Turn an ONNX file that exists already into a bundle that the server loads.",
        epilog=HELP.format(legends=legends),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE.onnx", help="the graph, weights inside")
    parser.add_argument("--layout", required=True, choices=["maskserve"], help="what its tensors mean, see below")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="<bundles>/<model>/<version>")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="one class name a line, in the order of the labels"
    )
    parser.add_argument(
        "--class-count",
        type=int,
        metavar="N",
        help="without --classes: name them class_0, class_1, ... up to N; a graph does not tell how many it knows",
    )
    parser.add_argument(
        "--resize",
        choices=["stretch", "letterbox"],
        default="stretch",
        help="how pictures came into the network in training: sides stretched to fit (default), or the ratio kept, the "
        "picture at the top left and zeros beside it",
    )
    parser.add_argument(
        "--shrink",
        choices=["area", "linear"],
        default="area",
        help="how pictures were made smaller in training: by the mean of the pixels that become one (default), or "
        "bilinear as cv2.INTER_LINEAR does and so most detectors (mmdet, YOLACT, the YOLO family)",
    )
    parser.add_argument(
        "--mask-rule",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the representation, see below; may repeat",
    )
    parser.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="largest batch that is proven (default 8)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="T", help="what requests get that name none (default 0.5)"
    )
    parser.add_argument("--replace", action="store_true", help="overwrite the bundle in --out")
    return parser.parse_args(argv)


def adopt(args: argparse.Namespace) -> None:
    """
    Raises:
        ExportError, StartupError: nothing was written.
    """
    check_options(args.max_batch, args.score_threshold)
    names = _class_names(args.classes, args.class_count)
    progress = Progress(steps=5)
    with whole_or_nothing(args.out, args.replace) as folder:
        with progress.step(f"reading {args.file}"):
            graph = _read(args.file)
            masks = _masks(graph, args.mask_rule)
            spec = FixedInput(size=input_size(graph), resize=args.resize, shrink=args.shrink)
        with progress.step("sparing it what it need not compute"):
            inputs = sample(spec, 1, seed=7, varied=takes_sizes(graph))
            spared = _write_spared(graph, args.file, folder / MODEL_FILE, inputs, masks.legend)
        batches = proven_batches(args.max_batch)
        with progress.step(f"comparing rows with their images alone at batch {', '.join(map(str, batches))}"):
            engine = load_engine(folder / MODEL_FILE, usable_cores())
            parity, answers = compare_rows(engine, spec, takes_sizes(graph), batches)
            check_rows(answers, masks.legend, spec.size)
        classes = _classes(names, largest_label(answers) if "labels" in masks.legend else 0, "labels" in masks.legend)
        with progress.step("recording the golden sample"):
            golden = engine.run(inputs)
            write_golden(folder, inputs, golden)
            engine.close()
        with progress.step("sealing the manifest"):
            manifest = write_manifest(
                folder,
                args.out,
                input=spec,
                masks=masks,
                outputs={name: (tensor.dtype.name, ["B", *tensor.shape[1:]]) for name, tensor in golden.items()},
                max_batch=args.max_batch,
                classes=classes,
                score_threshold=args.score_threshold,
                origin="onnxruntime-cpu",
                precision=_precision(graph),
                parity=parity,
                provenance={
                    "adopted": args.file.name,
                    "source_sha256": sha256_of(args.file),
                    "layout": args.layout,
                    "spared": spared,
                    "producer": f"{graph.producer_name} {graph.producer_version}".strip(),
                    "onnxruntime": onnxruntime.__version__,
                },
            )
    for line in spared:
        print(f"spared: {line}")
    print_bundle(manifest, args.out, progress.seconds())
    if names is None and "labels" in masks.legend:
        print(
            f"warning: nobody said how many classes there are; {GUESSED_CLASSES}, class_0 to "
            f"class_{GUESSED_CLASSES - 1}, is a guess, and a request in which a label above them is found will fail. "
            "Give --classes FILE or --class-count N",
            file=sys.stderr,
        )


def _read(path: Path) -> onnx.ModelProto:
    """
    Raises:
        ExportError: no such file, no ONNX, weights elsewhere, or a law is broken.
    """
    try:
        graph = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise ExportError(f"{path} does not exist; give the ONNX file first: adopt FILE.onnx ...") from None
    except (DecodeError, OSError) as error:
        raise ExportError(f"{path} is no ONNX file: {str(error).strip().splitlines()[0]}") from None
    if any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in graph.graph.initializer):
        raise ExportError(
            f"{path} keeps its weights in other files; put them inside with onnx.save(onnx.load(FILE), ONE_FILE)"
        )
    check_foreign_laws(graph)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path} is no valid ONNX: {str(error).strip().splitlines()[0]}; export it again") from None
    return graph


def _write_spared(
    graph: onnx.ModelProto, file: Path, target: Path, inputs: Tensors, legend: dict[str, str]
) -> list[str]:
    """The graph as `export.spare` has it if it answers like the file, else the file as it is.

    Returns:
        What was spared, a line each.
    """
    spared = spare(graph)
    if spared:
        onnx.save(graph, target)
        if alike(file, target, inputs, legend):
            return spared
        spared = ["nothing: what would have been spared changes the answers"]
    shutil.copyfile(file, target)
    return spared


def _representations() -> tuple[type[Masks], ...]:
    union, _ = get_args(AnyMasks)
    return get_args(union)


def _kind(representation: type[Masks]) -> str:
    return str(representation.model_fields["kind"].default)


def _masks(graph: onnx.ModelProto, parameters: list[str]) -> AnyMasks:
    """The representation whose legend has the names of the graph's outputs, with its parameters."""
    outputs = {value.name: value for value in graph.graph.output}
    known = _representations()
    fitting = [representation for representation in known if set(representation.legend) == set(outputs)]
    if not fitting:
        nearest = max(known, key=lambda representation: len(set(representation.legend) & set(outputs)))
        missing, unknown = sorted(set(nearest.legend) - set(outputs)), sorted(set(outputs) - set(nearest.legend))
        raise ExportError(
            f"outputs {sorted(outputs)} belong to no representation; '{_kind(nearest)}', the nearest, "
            f"lacks {missing or 'nothing'} and has no use for {unknown or 'none of them'}; rename or cut the outputs"
        )
    for name, value in outputs.items():
        wanted = "int32" if name == "labels" else "float32"
        if dtype_of(value) != wanted:
            raise ExportError(f"output '{name}' should be {wanted}, it is {dtype_of(value)}; add a Cast to the graph")
    pairs = dict(pair.partition("=")[::2] for pair in parameters)
    try:
        return fitting[0].model_validate(pairs)  # type: ignore[return-value]
    except ValidationError as error:
        first = error.errors()[0]
        offered = ", ".join(name for name in fitting[0].model_fields if name != "kind")
        where = ".".join(str(part) for part in first["loc"])
        raise ExportError(f"--mask-rule {where}: {first['msg']}; '{_kind(fitting[0])}' has {offered}") from None


def _class_names(path: Path | None, count: int | None) -> tuple[str, ...] | None:
    """As the command line has them; None when it says nothing."""
    if path is not None:
        names = read_classes(path)
        if count not in (None, len(names)):
            raise ExportError(f"{path} names {len(names)} classes and --class-count says {count}; give one of the two")
        return names
    if count is None:
        return None
    if count < 1:
        raise ExportError(f"--class-count {count} should be at least 1")
    return tuple(f"class_{label}" for label in range(count))


def _classes(names: tuple[str, ...] | None, largest: int, labelled: bool) -> tuple[str, ...]:
    """Names for every label: without labels one class, else `GUESSED_CLASSES` where nobody said how many."""
    if names is None:
        names = tuple(f"class_{label}" for label in range(GUESSED_CLASSES if labelled else 1))
    if largest >= len(names):
        raise ExportError(
            f"the graph answered label {largest}, and {len(names)} classes end at {len(names) - 1}; "
            "give all of them with --classes, or --class-count"
        )
    return names


def _precision(graph: onnx.ModelProto) -> Precision:
    """What most of the graph computes in, told by its weights and operators."""
    if any("Integer" in node.op_type or "QLinear" in node.op_type for node in graph.graph.node):
        return "int8"
    if any(node.op_type == "DequantizeLinear" for node in graph.graph.node):
        return "int8"
    if any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.graph.initializer):
        return "fp16"
    return "fp32"
