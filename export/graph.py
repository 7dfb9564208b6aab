"""PyTorch module to ONNX file.

Traced with a batch of two, because a batch of one would be baked in; height and width stay free in multiples, unless
the model takes one size only.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.laws import OPSET, check_laws
from export.source import Exportable
from export.tensorrt.naming import SCOPES
from models.blocks.onnx_table import TRANSLATIONS
from server.preprocess import AnyInput, FixedInput

SMALLEST_SIDE = 32  # pixels: a network may have a single cell there, and tracing takes what is one for always one


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
    images, sizes, free = _example(model.input)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own internals
            program = torch.onnx.export(
                _Ordered(cast(nn.Module, model), names),
                (images, sizes),
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=TRANSLATIONS,
                input_names=["images", "sizes"],
                output_names=names,
                dynamic_shapes={"images": free, "sizes": {0: torch.export.Dim.DYNAMIC}},
                verbose=False,
            )
        assert program is not None
        program.save(str(path), external_data=False)
        _forget_sources(path)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ExportError(f"the exporter failed: {type(error).__name__}: {reason}") from error
    check_laws(path, names)


def _example(spec: AnyInput) -> tuple[Tensor, Tensor, dict[int, Any]]:
    """Pictures and sizes to trace with, and the axes of the pictures that stay free."""
    free: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    if isinstance(spec, FixedInput):
        height, width = spec.size
    else:
        multiple = spec.multiple
        lowest, highest = -(-SMALLEST_SIDE // multiple), min(spec.max_size) // multiple
        height = max(1, min(max(4, 2 * lowest), highest - 1)) * multiple
        width = height + multiple
        free |= {
            axis: multiple * torch.export.Dim(name, min=lowest, max=highest)
            for axis, name in ((1, "height"), (2, "width"))
        }
    images = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    return images, torch.tensor([[height, width], [height - 1, width - 1]], dtype=torch.int32), free


def _forget_sources(path: Path) -> None:
    """Drop the exporter's notes: stack traces, with the paths of the machine that exported. Nodes keep their module."""
    graph = onnx.load(path)
    for node in graph.graph.node:
        modules = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        for scopes in modules:
            node.metadata_props.add(key=SCOPES, value=scopes)
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
    onnx.save(graph, path)
