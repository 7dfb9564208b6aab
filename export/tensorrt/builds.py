"""`make trt-build`: an engine of every architecture that this project has, with the builder that is installed.

    python -m export.tensorrt.builds [--only NAME]

Names come from the architectures' own lists, so a newcomer is built too. All but one are narrow, with one block a stage
and fewer proposals: the operators and how they are joined stay as they are, and those are what a parser or a compiler
refuses. Each is exported and built in a process of its own, as many at a time as there are cores.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import torch
from torch import nn

from export.errors import ExportError
from export.graph import write_graph
from export.laws import check_plugin_free
from export.plan import refusal
from export.precision.half import to_half
from export.precision.layers import layers_of
from export.precision.parts import parts_of
from export.precision.pictures import drawn
from export.precision.quantise import TENSORRT, calibrate, prepared, quantise
from export.progress import silence_exporter
from export.source import Exportable
from export.tensorrt import reading
from export.tensorrt.building import Refused
from export.tensorrt.options import Options
from export.tensorrt.package import Name, compute_capabilities, find, gpu
from export.tensorrt.profiles import profiles_for
from export.tensorrt.worker import build_apart
from export.twin import twin_of
from models import mask_rcnn, unet
from models.blocks.cluster_nms import ROUNDS
from models.blocks.mask_rcnn_spec import MaskRCNNSpec
from models.blocks.resnet import ResNetSpec
from models.mask_rcnn import MaskRCNN
from server.cores import usable_cores

MAX_BATCH = 8
SIZE = (256, 320)  # of the inputs of most: one profile in place of two
PROPOSALS = 300
SAME = {  # what is left out, and what stands for it
    "mask_rcnn_r50_fpn": "mask_rcnn_tiny, which is the same with fewer channels",
    "mask_rcnn_r50_fpn_coco_v1": "mask_rcnn_tiny, with more channels and another epsilon",
    "mask_rcnn_r50_caffe_fpn_mmdet": "mask_rcnn_r50_fpn_mmdet, with its strides in another convolution",
    "mask_rcnn_r101_fpn_d2": "mask_rcnn_r50_fpn_d2, with more blocks",
    "mask_rcnn_r101_fpn_detectron_pytorch": "mask_rcnn_r50_fpn_detectron_pytorch, with more blocks",
}
LOWERED = ("nuclei_unet", "mask_rcnn_r50_fpn_d2")  # built in fp16 and int8 too
FREE = ("mask_rcnn_tiny",)  # with an input of any size, as all are unless told
FULL = "mask_rcnn_r50_fpn_d2"
COLUMNS = ("system", "twin MB", "export s", "build s", "plan MB", "peak MB", "GPU GB", "products")


@dataclass(frozen=True, slots=True)
class Case:
    """Something to build."""

    module: str
    builder: str
    precision: reading.Precision = "fp32"
    full: bool = False

    @property
    def name(self) -> str:
        size = ", full size" if self.full else ", any size" if self.builder in FREE else ""
        return f"{self.builder} {self.precision}{size}"


def cases() -> Iterator[Case]:
    """The longest first."""
    yield Case(mask_rcnn.__name__, FULL, full=True)
    for module in (mask_rcnn, unet):
        for builder in module.__all__:
            if builder in SAME:
                continue
            if builder != FULL:
                yield Case(module.__name__, builder)
            if builder in LOWERED:
                yield Case(module.__name__, builder, "fp16")
                yield Case(module.__name__, builder, "int8")


def model_of(case: Case) -> Exportable:
    """With seeded weights."""
    make = getattr(importlib.import_module(case.module), case.builder)
    if case.module != mask_rcnn.__name__:
        model = make()
    elif case.full:
        model = make(input_size=None)
    else:
        model = make(input_size=None if case.builder in FREE else SIZE)
        model = MaskRCNN(narrow(model.spec), model.classes, model.input, model.score_threshold)
    _draw(model)
    return cast(Exportable, model.eval())


def write_twin(case: Case, path: Path) -> Exportable:
    """Export the twin of a case, in its precision.

    Returns:
        The model that it is the twin of.
    """
    model = model_of(case)
    twin = twin_of(model, ROUNDS)
    if case.precision == "fp16":
        picture = drawn(model.input)[0]
        images, sizes = (torch.from_numpy(picture[name][:1]) for name in ("images", "sizes"))
        twin = to_half(twin, parts_of(cast(nn.Module, model), images, sizes))
    write_graph(twin, path)
    check_plugin_free(path)
    if case.precision == "int8":
        graph = prepared(path)
        layers = layers_of(graph)
        quantise(graph, path, calibrate(graph, layers, drawn(model.input)), layers, TENSORRT)
    return model


def narrow(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    """The same network with few channels and blocks; proposals and rows stay as many."""
    return replace(
        spec,
        backbone=_narrow(spec.backbone),
        neck=spec.neck and replace(spec.neck, channels=16),
        shared_stage=spec.shared_stage and _narrow(spec.shared_stage),
        rpn=replace(
            spec.rpn,
            before_nms=min(spec.rpn.before_nms, PROPOSALS),
            after_nms=min(spec.rpn.after_nms, PROPOSALS),
            proposals=min(spec.rpn.proposals, PROPOSALS),
        ),
        box_head=replace(
            spec.box_head, convs=(16,) * len(spec.box_head.convs), layers=(32,) * len(spec.box_head.layers)
        ),
        mask_head=replace(spec.mask_head, convs=(16,) * len(spec.mask_head.convs), width=16),
    )


def _narrow(resnet: ResNetSpec) -> ResNetSpec:
    return replace(resnet, blocks=(1, 1, 1, 1), stem_channels=16, middle=16, channels=32, groups=min(resnet.groups, 2))


def _draw(model: nn.Module) -> None:
    """Seeded weights: a builder may take away what multiplies with zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5, generator=generator)


def build(case: Case, builder: Name) -> tuple[tuple[str, ...], str]:
    """Export and build one.

    Returns:
        A cell for each of `COLUMNS`, or none and what went wrong.
    """
    silence_exporter()
    package = find(builder)
    with tempfile.TemporaryDirectory(prefix="maskserve-builds-") as folder:
        twin, plan = Path(folder) / "model.trt.onnx", Path(folder) / "model.plan"
        began = time.monotonic()
        try:
            model = write_twin(case, twin)
            exported = time.monotonic() - began
            options = Options(compute_capabilities=compute_capabilities(package, [], gpu()))
            profiles = profiles_for(model.input, ["images", "sizes"], MAX_BATCH)
            built, memory = build_apart(package, twin, plan, profiles, options, quiet=True)
            found = reading.products_found(built.layers, built.asked)
            share = reading.check_precision(case.precision, built.asked, found)
        except Refused as refused:
            return (), refusal(package, twin, refused)
        except ExportError as error:
            return (), str(error)
        cells = (
            case.name,
            f"{twin.stat().st_size / 1e6:.1f}",
            f"{exported:.1f}",
            f"{built.seconds:.1f}",
            f"{built.plan_bytes / 1e6:.1f}",
            f"{memory:.0f}",
            f"{(built.device_memory_bytes or 0) / 1e9:.2f}",
            f"{share:.0%} of {len(found)}",
        )
        return cells, ""


def main(argv: list[str]) -> int:
    """0 when every engine was built, 1 when one was not, 2 without a builder."""
    parser = argparse.ArgumentParser(prog="python -m export.tensorrt.builds", description="Build everything.")
    parser.add_argument("--only", metavar="NAME", help="those whose name holds this")
    parser.add_argument("--builder", choices=("auto", "tensorrt", "tensorrt-rtx"), default="auto")
    args = parser.parse_args(argv)
    try:
        package = find(args.builder)
        targets = ", ".join(compute_capabilities(package, [], gpu()))
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = [case for case in cases() if args.only is None or args.only in case.name]
    if not chosen:
        print(f"no system's name holds '{args.only}'", file=sys.stderr)
        return 2
    width = max(len(case.name) for case in chosen)
    print(f"{package.name} {package.version}, for compute capability {targets}, batches up to {MAX_BATCH}\n")
    print(_line(COLUMNS, width), flush=True)
    began, failed = time.monotonic(), 0
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come: each has one core
    with ProcessPoolExecutor(usable_cores(), get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = {pool.submit(build, case, package.name): case for case in chosen}
        for future in as_completed(waiting):
            case, (cells, problem) = waiting[future], future.result()
            failed += bool(problem)
            print(f"{case.name:<{width}}  FAILED: {problem}" if problem else _line(cells, width), flush=True)
    print(f"\n{len(chosen) - failed} of {len(chosen)} engines built in {time.monotonic() - began:.0f} s")
    for left_out, other in SAME.items():
        print(f"left out: {left_out} ({other})")
    return 1 if failed else 0


def _line(cells: tuple[str, ...], width: int) -> str:
    return f"{cells[0]:<{width}}  " + "  ".join(f"{cell:>11}" for cell in cells[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
