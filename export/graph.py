"""PyTorch module to ONNX file, and the laws every graph keeps.

Traced with a batch of two, because a batch of one would be baked in; height and width stay free in multiples.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import cast

import onnx
import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.source import Exportable

OPSET = 20
FORBIDDEN = {"NonZero", "If", "Loop", "Compress"}
FORBIDDEN_PREFIX = "Sequence"


class _Ordered(nn.Module):
    """The module with its outputs as a tuple in legend order, which the exporter can name."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(images, sizes)
        return tuple(outputs[name] for name in self.names)


def write_graph(model: Exportable, path: Path) -> None:
    """Export and check.

    Raises:
        ExportError: the exporter failed, or the graph breaks a law.
    """
    names = list(model.masks.legend)
    multiple = model.input.multiple
    highest = min(model.input.max_size) // multiple
    side = multiple * 4
    images = torch.zeros(2, side, side + multiple, 3, dtype=torch.uint8)
    sizes = torch.tensor([[side, side + multiple], [side - 1, side]], dtype=torch.int32)
    batch = torch.export.Dim.DYNAMIC
    height = torch.export.Dim("height", min=1, max=highest)
    width = torch.export.Dim("width", min=1, max=highest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own internals
            program = torch.onnx.export(
                _Ordered(cast(nn.Module, model), names),
                (images, sizes),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images", "sizes"],
                output_names=names,
                dynamic_shapes={
                    "images": {0: batch, 1: multiple * height, 2: multiple * width},
                    "sizes": {0: batch},
                },
                verbose=False,
            )
        assert program is not None
        program.save(str(path), external_data=False)
        _forget_sources(path)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ExportError(f"the exporter failed: {type(error).__name__}: {reason}") from error
    check_laws(path, names)


def _forget_sources(path: Path) -> None:
    """Drop the exporter's notes on nodes: stack traces, with the paths of the machine that exported."""
    graph = onnx.load(path)
    for node in graph.graph.node:
        del node.metadata_props[:]
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
    onnx.save(graph, path)


def check_laws(path: Path, names: list[str]) -> None:
    """
    Raises:
        ExportError: another opset, a forbidden operator, wrong inputs or outputs, or a batch axis that is not free.
    """
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    versions = {entry.domain: entry.version for entry in graph.opset_import}
    if versions != {"": OPSET}:
        raise ExportError(f"the graph should need opset {{'': {OPSET}}} alone, it needs {versions}")
    used = {node.op_type for node in graph.graph.node}
    forbidden = {op for op in used if op in FORBIDDEN or op.startswith(FORBIDDEN_PREFIX)}
    if forbidden:
        raise ExportError(
            f"the graph uses {sorted(forbidden)}: its shapes depend on its data; use fixed sizes and where()"
        )
    if [value.name for value in graph.graph.input] != ["images", "sizes"]:
        raise ExportError(f"inputs should be images and sizes, got {[value.name for value in graph.graph.input]}")
    if [value.name for value in graph.graph.output] != names:
        raise ExportError(f"outputs should be {names}, got {[value.name for value in graph.graph.output]}")
    for value in (*graph.graph.input, *graph.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(f"the batch axis of '{value.name}' is fixed; something in the model depends on it")


def tensor_shapes(path: Path) -> dict[str, tuple[str, list[int | str]]]:
    """Output name -> (dtype, shape), free axes by name."""
    graph = onnx.load(path, load_external_data=False)
    found: dict[str, tuple[str, list[int | str]]] = {}
    for value in graph.graph.output:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        found[value.name] = dtype, [axis.dim_param or int(axis.dim_value) for axis in tensor.shape.dim]
    return found
