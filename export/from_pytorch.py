"""`python -m export MODULE:BUILDER --weights FILE --out DIR`: a bundle from a trained model, proven equal to it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

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
from export.laws import check_plugin_free, tensor_shapes
from export.precision.lower import Lowering, add_options, asked_for, check, check_first, in_fp32, lower
from export.precision.proof import golden_for, held
from export.precision.quantise import ONNXRUNTIME, TENSORRT
from export.progress import Progress
from export.source import build, classes_of, load_weights, takes
from export.twin import check_settled, pictures_of, rounds_for, twin_of
from server.bundle_files import MODEL_FILE, TWIN_FILE, sha256_of
from server.cores import usable_cores
from server.engines import load_engine
from server.manifest import Twin

EPILOG = """\
examples:
  python -m export models.unet:nuclei_unet --weights models/weights/nuclei.safetensors --out bundles/nuclei/1
  python -m export models.mask_rcnn:mask_rcnn_r50_fpn --weights maskrcnn_resnet50_fpn.pth --out bundles/coco/1
  python -m export models.mask_rcnn:mask_rcnn_r50_fpn --weights mine.pth --classes names.txt --out bundles/mine/1
  python -m export models.unet:nuclei_unet --weights models/weights/nuclei.safetensors --out bundles/nuclei/2 --tensorrt
  python -m server --bundles bundles

A checkpoint may come from torchvision, detectron2 (.pkl or .pth), mmdetection, maskrcnn-benchmark and its forks,
Detectron.pytorch, or be safetensors; its own key names tell which. It is read without running any code that is in it.
docs/export.md goes through it step by step, one code base after the other; docs/models.md says which builder is which
model.

What is not given comes from the builder, and what a builder has no use for is refused.

The bundle is refused, and nothing written, unless ONNX Runtime answers like PyTorch at batch 1, 2, 3 and --max-batch,
and every row of a batch equals its image alone.

other commands, each with its own --help:
  python -m export adopt FILE.onnx ...      an ONNX file that exists already becomes a bundle
  python -m export verify BUNDLE            check a bundle again, on this machine
  python -m export plan BUNDLE              a TensorRT engine from a bundle that has a graph for it
  python -m export conform --golden DIR     reference cases of other implementations
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a trained PyTorch model into a bundle that the server loads.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODULE:BUILDER", help="who builds the model, as in models.unet:nuclei_unet")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="checkpoint; no code in it is run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="<bundles>/<model>/<version>")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="one class name a line, in label order, without a background"
    )
    parser.add_argument(
        "--input-size", metavar="HxW", help="one fixed size of the network's input, in pixels, as in 800x1344"
    )
    parser.add_argument(
        "--resize",
        choices=("stretch", "letterbox"),
        help="how a picture comes into --input-size: fill it, or keep the ratio and pad with zeros",
    )
    parser.add_argument("--mean", metavar="R,G,B", help="taken from every pixel, in grey levels 0..255, RGB order")
    parser.add_argument("--std", metavar="R,G,B", help="what is left is divided by this, in the same units")
    parser.add_argument("--top", type=int, metavar="N", help="rows an image gets: the most instances it can have")
    parser.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="largest batch that is proven (default 8)"
    )
    parser.add_argument("--score-threshold", type=float, metavar="T", help="what a request gets that asks for none")
    parser.add_argument(
        "--tensorrt",
        action="store_true",
        help="write model.trt.onnx too: the same network from operators that TensorRT has without plugins",
    )
    add_options(parser)
    parser.add_argument("--replace", action="store_true", help="overwrite the bundle in --out")
    return parser.parse_args(argv)


def export(args: argparse.Namespace) -> None:
    """
    Raises:
        ExportError, StartupError: nothing was written.
    """
    check_options(args.max_batch, args.score_threshold)
    options = builder_options(args)
    asked = asked_for(args)
    progress = Progress(steps=5 + asked.steps + (3 + (asked.precision == "int8")) * args.tensorrt)
    with whole_or_nothing(args.out, args.replace) as folder:
        with progress.step(f"building {args.model} and loading {args.weights}"):
            names = classes_of(args.weights) if args.classes is None else read_classes(args.classes)
            if names is not None and takes(args.model, "classes"):
                options["classes"] = names
            model = build(args.model, **options)
            load_weights(model, args.weights)
            if names is not None and len(names) != len(model.classes):
                raise ExportError(
                    f"{args.classes or args.weights} names {len(names)} classes; the model has {len(model.classes)}"
                )
        check_first(asked, names or model.classes)
        lowering = lower(asked, model, MODEL_FILE, progress)
        with progress.step("writing the graph"):
            write_graph(lowering.model, folder / MODEL_FILE)
            before = in_fp32(lowering, folder / MODEL_FILE)
        lowering.to_int8(folder / MODEL_FILE, ONNXRUNTIME, progress)
        batches = proven_batches(args.max_batch)
        with progress.step(f"comparing with PyTorch at batch {', '.join(map(str, batches))}"):
            engine = load_engine(folder / MODEL_FILE, usable_cores())
            parity = held(model, engine, batches, asked.precision)
        engines, twin = [engine], None
        if args.tensorrt:
            twin = _write_twin(lowering, folder, batches, progress)
            engines.append(load_engine(folder / TWIN_FILE, usable_cores()))
        with progress.step("recording the golden sample"):
            inputs, reference = golden_for(model, engines, asked.precision)
            if twin is not None:
                check_settled(model, twin.nms_rounds, [inputs])
            write_golden(folder, inputs, reference)
        accuracy = check(asked, lowering, names or model.classes, engines, before, progress)
        for opened in engines:
            opened.close()
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
                classes=names or model.classes,
                score_threshold=threshold,
                origin="pytorch",
                precision=asked.precision,
                parity=parity,
                twin=twin,
                lowered=lowering.records,
                accuracy=accuracy,
                provenance={
                    "builder": args.model,
                    "options": options,
                    "weights_sha256": sha256_of(args.weights),
                    "torch": torch.__version__,
                    "onnx": onnx.__version__,
                },
            )
    progress.print_table()
    print_bundle(manifest, args.out, progress.seconds())


def _write_twin(lowering: Lowering, folder: Path, batches: list[int], progress: Progress) -> Twin:
    """`model.trt.onnx`, held against PyTorch by the same pictures and the same measure as `model.onnx`."""
    path, model = folder / TWIN_FILE, lowering.original
    with progress.step("running it without plugins"):
        rounds = rounds_for(model, pictures_of(model, batches))
    with progress.step("writing the graph for TensorRT"):
        write_graph(lowering.applied(twin_of(model, rounds), TWIN_FILE), path)
        check_plugin_free(path)
    lowering.to_int8(path, TENSORRT, progress)
    with progress.step("comparing that with PyTorch"):
        engine = load_engine(path, usable_cores())
        try:
            parity = held(model, engine, batches, lowering.asked.precision)
        finally:
            engine.close()
    return Twin(nms_rounds=rounds, parity=parity)


def builder_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the model itself, as a builder takes it; only what was given.

    Raises:
        ExportError: a value is not what its option wants.
    """
    options: dict[str, Any] = {}
    if args.input_size is not None:
        options["input_size"] = _size(args.input_size)
    elif args.resize is not None:
        raise ExportError(f"--resize {args.resize} fills an input of one size; give --input-size too, as in 800x1344")
    if args.resize is not None:
        options["resize"] = args.resize
    for name in ("mean", "std"):
        if getattr(args, name) is not None:
            options[name] = _three(f"--{name}", getattr(args, name))
    if min(options.get("std", (1.0,))) <= 0:
        raise ExportError(f"--std {args.std} should be above 0; pixels are divided by it")
    if args.top is not None:
        if args.top < 1:
            raise ExportError(f"--top {args.top} should be at least 1")
        options["top"] = args.top
    return options


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise ExportError(f"--input-size {text} should be height x width in pixels, as in 800x1344")
    return int(found[1]), int(found[2])


def _three(option: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(number) for number in text.split(","))
    except ValueError:
        raise ExportError(
            f"{option} {text} should be three numbers for red, green and blue, as in 123.7,116.3,103.5"
        ) from None
    return red, green, blue
