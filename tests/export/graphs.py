"""Small ONNX graphs made by hand: what somebody else's export may look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.onnx_ml_pb2 import NodeProto, ValueInfoProto

SIDE = 32  # of the input
GRID = 8  # of the planes
ROWS = 3
LEGEND: dict[str, tuple[int, list[Any]]] = {
    "boxes": (TensorProto.FLOAT, ["B", ROWS, 4]),
    "scores": (TensorProto.FLOAT, ["B", ROWS]),
    "labels": (TensorProto.INT32, ["B", ROWS]),
    "coefficients": (TensorProto.FLOAT, ["B", ROWS, 2]),
    "prototypes": (TensorProto.FLOAT, ["B", 2, GRID, GRID]),
}
BOXES = [[0, 0, 16, 32], [16, 0, 32, 32], [0, 0, 32, 32]]  # the left half, the right one, everything
SCORES = [0.9, 0.8, 0.0]  # the third row is unused
LABELS = [1, 0, 0]


class Graph:
    """A detector that knows where the light is: its first plane is the picture, at a quarter of its size, minus grey.

    Two rows in use: what is bright in the left half, and what is dark in the right half. Every part can be replaced
    before `write`, which is how tests break it.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: dict[str, tuple[int, list[Any]]] = {"images": (TensorProto.UINT8, ["B", SIDE, SIDE, 3])}
        self.outputs = dict(LEGEND)
        self.opset = 20
        self._build()

    def _build(self) -> None:
        quarter = SIDE // GRID
        self.node("Cast", ["images"], "pixels", to=TensorProto.FLOAT)
        self.node("Transpose", ["pixels"], "planes", perm=[0, 3, 1, 2])  # (B, 3, h, w)
        self.node("AveragePool", ["planes"], "small", kernel_shape=[quarter] * 2, strides=[quarter] * 2)
        self.node("ReduceMean", ["small", self.constant("channels", np.array([1]))], "light", keepdims=1)
        self.node("Sub", ["light", self.constant("grey", np.array(128, np.float32))], "logits")  # (B, 1, 8, 8)
        self.node("Concat", ["logits", "logits"], "prototypes", axis=1)
        self.node("Shape", ["images"], "batch", start=0, end=1)
        coefficients = np.array([[0.05, 0.05], [-0.05, -0.05], [0, 0]], np.float32)
        for name, rows in (
            ("boxes", np.array(BOXES, np.float32)),
            ("scores", np.array(SCORES, np.float32)),
            ("labels", np.array(LABELS, np.int32)),
            ("coefficients", coefficients),
        ):
            self.repeat(name, rows)

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name

    def repeat(self, name: str, rows: np.ndarray) -> None:
        """An output that is the same for every picture."""
        shape = self.constant(f"{name}_shape", np.array(rows.shape))
        self.node("Concat", ["batch", shape], f"{name}_full", axis=0)
        self.node("Expand", [self.constant(f"{name}_rows", rows), f"{name}_full"], name)

    def instead(self, output: str, kind: str, inputs: list[str], **attributes: Any) -> None:
        """Let another node make an output; the old value is now called `old_<output>`."""
        for node in self.nodes:
            node.output[:] = [f"old_{output}" if name == output else name for name in node.output]
        self.node(kind, inputs, output, **attributes)

    def write(self, path: Path) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "by hand",
            [_value(name, *described) for name, described in self.inputs.items()],
            [_value(name, *described) for name, described in self.outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        onnx.save(model, path)
        return path


def _value(name: str, dtype: int, shape: list[Any]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)
