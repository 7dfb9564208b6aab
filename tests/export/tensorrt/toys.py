"""Three convolutions, made by hand in the precision that a test wants, and one node that can be put before them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.onnx_ml_pb2 import NodeProto
from onnx.onnx_ml_pb2 import TensorProto as Initializer

SIDE = 64


def write_toy(
    path: Path,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    before: tuple[NodeProto, ...] = (),
    scope: str | None = None,
) -> Path:
    """Input `images` (B, 64, 64, 3) uint8, output `mean` (B, 64, 64).

    Args:
        before: nodes from `pixels` (B, 3, 64, 64) to `changed`.
        scope: the exporter's note on those, as text.
    """
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["pixels"], name="permute", perm=[0, 3, 1, 2]),
        *before,
    ]
    for node in before:
        if scope is not None:
            entry = node.metadata_props.add()
            entry.key, entry.value = "pkg.torch.onnx.name_scopes", scope
    weights: list[Initializer] = []
    value, channels = ("changed" if before else "pixels"), 3
    if precision == "fp16":
        nodes.append(helper.make_node("Cast", [value], ["half"], name="to_half", to=TensorProto.FLOAT16))
        value = "half"
    for index, width in enumerate((32, 64, 64)):
        kernel = (rng.standard_normal((width, channels, 3, 3)) * 0.1).astype(
            np.float16 if precision == "fp16" else np.float32
        )
        name = f"model.stage{index}.conv.weight"
        if precision == "int8":
            value, name = _quantised(nodes, weights, value, kernel, index, name)
        else:
            weights.append(numpy_helper.from_array(kernel, name))
        out = f"convolved{index}"
        nodes.append(helper.make_node("Conv", [value, name], [out], name=f"node_conv_{index}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [out], [f"relu{index}"], name=f"node_relu_{index}"))
        value, channels = f"relu{index}", width
    if precision == "fp16":
        nodes.append(helper.make_node("Cast", [value], ["wide"], name="to_float", to=TensorProto.FLOAT))
        value = "wide"
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    nodes.append(helper.make_node("ReduceMean", [value, "axes"], ["mean"], name="node_mean", keepdims=0))
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["B", SIDE, SIDE])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _quantised(
    nodes: list[NodeProto], weights: list[Initializer], value: str, kernel: np.ndarray, index: int, name: str
) -> tuple[str, str]:
    """QDQ around the two inputs of a convolution; their names."""
    scale = (np.abs(kernel).max((1, 2, 3)) / 127).astype(np.float32)
    whole = np.clip(np.round(kernel / scale[:, None, None, None]), -127, 127).astype(np.int8)
    constants = {
        name: whole,
        f"s{index}": scale,
        f"z{index}": np.zeros(len(scale), np.int8),
        f"as{index}": np.float32(0.05),
        f"az{index}": np.int8(0),
    }
    weights += [numpy_helper.from_array(np.asarray(constant), key) for key, constant in constants.items()]
    nodes += [
        helper.make_node(
            "DequantizeLinear", [name, f"s{index}", f"z{index}"], [f"w{index}"], name=f"dw{index}", axis=0
        ),
        helper.make_node("QuantizeLinear", [value, f"as{index}", f"az{index}"], [f"q{index}"], name=f"q{index}"),
        helper.make_node(
            "DequantizeLinear", [f"q{index}", f"as{index}", f"az{index}"], [f"d{index}"], name=f"d{index}"
        ),
    ]
    return f"d{index}", f"w{index}"
