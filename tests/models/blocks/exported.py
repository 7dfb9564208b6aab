"""A block as a graph, run by ONNX Runtime: traced with a batch of two, whatever axes the caller leaves free."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from export.laws import OPSET, check_operators
from models.blocks.onnx_table import TRANSLATIONS

FREE = torch.export.Dim.DYNAMIC
Run = Callable[..., list[np.ndarray]]


class Outputs(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def exported(module: nn.Module, inputs: tuple[Tensor, ...], free: Sequence[dict[int, Any]]) -> tuple[Run, list[str]]:
    """
    Args:
        free: for every input, its free axes.

    Returns:
        A function that runs the graph, and its operators; the graph keeps the laws.
    """
    names = [f"input_{number}" for number in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        shapes: Any = (tuple(free),) if isinstance(module, Outputs) else tuple(free)
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            dynamic_shapes=shapes,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    onnx.checker.check_model(graph, full_check=True)
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": OPSET}
    check_operators(graph)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(*values: Tensor) -> list[np.ndarray]:
        return session.run(None, {name: value.numpy() for name, value in zip(names, values, strict=True)})

    return run, [node.op_type for node in graph.graph.node]
