"""PyTorch module to ONNX file.

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
from export.laws import OPSET, check_laws
from export.source import Exportable


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
