"""The laws that every graph keeps: read from the file, without running it.

Input `images`, uint8 (B, h, w, 3), and perhaps `sizes`, int32 (B, 2), with the true size of each picture; B is free.
Standard operators only, and none whose output's shape depends on the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from export.errors import ExportError

OPSET = 20
FOREIGN_OPSETS = range(17, 22)
FORBIDDEN = {"NonZero", "If", "Loop", "Compress"}
FORBIDDEN_PREFIX = "Sequence"

BUILT = """
    Abs Add And Asinh BatchNormalization Cast Ceil Clip Concat Conv ConvTranspose Div Equal Exp Expand Floor Gather
    GatherElements GatherND Gemm Greater GreaterOrEqual GridSample Less LessOrEqual Log MatMul Max MaxPool Min Mod Mul
    Pad Range ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize ScatterElements Shape Sigmoid
    Slice Softmax Sqrt Squeeze Sub TopK Transpose Trilu Unsqueeze Where
    Constant DequantizeLinear Identity QuantizeLinear Split
    """  # what the twins consist of, and the tests build with TensorRT; the last line comes with other precisions
PLUGIN_FREE = frozenset(BUILT.split())
LARGEST_TOPK = 3839  # rows that TensorRT gives at most

Axes = list[int | str]  # free axes by name


def check_laws(path: Path, names: list[str]) -> None:
    """The laws for our own exports.

    Raises:
        ExportError: another opset, a forbidden operator, wrong inputs or outputs, or a batch axis that is not free.
    """
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    versions = {entry.domain: entry.version for entry in graph.opset_import}
    if versions != {"": OPSET}:
        raise ExportError(f"the graph should need opset {{'': {OPSET}}} alone, it needs {versions}")
    check_operators(graph)
    if [value.name for value in graph.graph.input] != ["images", "sizes"]:
        raise ExportError(f"inputs should be images and sizes, got {[value.name for value in graph.graph.input]}")
    if [value.name for value in graph.graph.output] != names:
        raise ExportError(f"outputs should be {names}, got {[value.name for value in graph.graph.output]}")
    for value in (*graph.graph.input, *graph.graph.output):
        if not isinstance(axes_of(value)[0], str):
            raise ExportError(f"the batch axis of '{value.name}' is fixed; something in the model depends on it")


def check_foreign_laws(graph: onnx.ModelProto) -> None:
    """The laws for a graph that somebody else exported, as far as the file tells; the rest is measured.

    Raises:
        ExportError: it needs another opset or foreign operators, uses a forbidden one, or has other inputs.
    """
    versions = {entry.domain or "ai.onnx": entry.version for entry in graph.opset_import}
    opset = versions.get("ai.onnx", 0)
    if opset not in FOREIGN_OPSETS:
        wanted = f"{FOREIGN_OPSETS.start} to {FOREIGN_OPSETS.stop - 1}"
        raise ExportError(f"the graph should need opset {wanted}, it needs {opset}; export it again with opset {OPSET}")
    check_operators(graph)
    inputs = {value.name: value for value in _inputs(graph)}
    if "images" not in inputs or set(inputs) - {"images", "sizes"}:
        raise ExportError(
            f"inputs should be 'images', and 'sizes' if the graph wants it, got {sorted(inputs)}; "
            "rename them (onnx.compose, or input_names= of the exporter)"
        )
    _check_input(
        inputs["images"], onnx.TensorProto.UINT8, (None, 0, 0, 3), "the graph itself casts, transposes and normalises"
    )
    if "sizes" in inputs:
        _check_input(inputs["sizes"], onnx.TensorProto.INT32, (None, 2), "it holds each picture's height and width")


def check_operators(graph: onnx.ModelProto) -> None:
    """
    Raises:
        ExportError: an operator is not ONNX's own, or its output's shape depends on its data.
    """
    nodes = [*graph.graph.node, *(node for function in graph.functions for node in function.node)]
    ours = {function.domain for function in graph.functions}
    foreign = {f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in {"", "ai.onnx", *ours}}
    if foreign:
        raise ExportError(
            f"the graph uses {sorted(foreign)}, which only some runtimes know; export it from standard ONNX operators"
        )
    used = {node.op_type for node in nodes}
    forbidden = {op for op in used if op in FORBIDDEN or op.startswith(FORBIDDEN_PREFIX)}
    if forbidden:
        raise ExportError(
            f"the graph uses {sorted(forbidden)}: its shapes depend on its data; use fixed sizes and where()"
        )


def check_plugin_free(path: Path) -> None:
    """The laws of the twin, besides those for every graph: nothing in it that a stock TensorRT lacks.

    Raises:
        ExportError: an operator is a plugin there or unknown, a `TopK` gives too many rows, a scatter reduces, or the
            picture's bytes go anywhere else than through a `Cast`.
    """
    graph = onnx.load(path).graph
    lacking = sorted({node.op_type for node in graph.node} - PLUGIN_FREE)
    if lacking:
        raise ExportError(
            f"the graph for TensorRT uses {lacking}, which a stock TensorRT lacks or nobody has built yet, and the "
            "model offers no form without; export without --tensorrt"
        )
    numbers = {tensor.name: tensor for tensor in graph.initializer}
    numbers |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    for node in graph.node:
        if "images" in node.input and node.op_type not in ("Cast", "Shape"):
            raise ExportError(f"'images' goes into {node.op_type}; TensorRT only casts bytes, so cast them first")
        if node.op_type == "TopK":
            rows = numbers.get(node.input[1])
            count = None if rows is None else int(onnx.numpy_helper.to_array(rows).item())
            if count is None or count > LARGEST_TOPK:
                told = "a number that depends on the picture" if count is None else count
                raise ExportError(f"a TopK of the graph for TensorRT gives {told} rows; {LARGEST_TOPK} are the most")
        if node.op_type.startswith("Scatter") and any(_reduces(attribute) for attribute in node.attribute):
            raise ExportError(f"a {node.op_type} of the graph for TensorRT has a reduction, which TensorRT lacks")


def _reduces(attribute: onnx.AttributeProto) -> bool:
    return attribute.name == "reduction" and attribute.s not in (b"", b"none")


def _check_input(value: onnx.ValueInfoProto, dtype: int, wanted: tuple[int | None, ...], because: str) -> None:
    """`wanted`: None is free, 0 any number."""
    found = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    should = onnx.TensorProto.DataType.Name(dtype).lower()
    axes = axes_of(value)
    written = ", ".join("B" if length is None else str(length or "hw"[i - 1]) for i, length in enumerate(wanted))
    if found != should or len(axes) != len(wanted):
        raise ExportError(f"input '{value.name}' should be {should} ({written}), got {found} {axes}: {because}")
    if not isinstance(axes[0], str):
        raise ExportError(
            f"the batch axis of '{value.name}' is fixed at {axes[0]}; export it with that axis dynamic "
            "(dynamic_axes= or dynamic_shapes= of torch.onnx.export)"
        )
    for axis, length in zip(axes[1:], wanted[1:], strict=True):
        if not isinstance(axis, int) or (length and axis != length):
            raise ExportError(f"input '{value.name}' should be ({written}) with fixed numbers but for B, got {axes}")


def takes_sizes(graph: onnx.ModelProto) -> bool:
    return any(value.name == "sizes" for value in _inputs(graph))


def _inputs(graph: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """Real inputs: older exporters list the weights too."""
    weights = {initializer.name for initializer in graph.graph.initializer}
    return (value for value in graph.graph.input if value.name not in weights)


def input_size(graph: onnx.ModelProto) -> tuple[int, int]:
    """(height, width) of `images`, of a graph that keeps the laws."""
    (images,) = (value for value in _inputs(graph) if value.name == "images")
    _, height, width, _ = axes_of(images)
    return int(height), int(width)


def axes_of(value: onnx.ValueInfoProto) -> Axes:
    """Its shape; an axis without a name is '?'."""
    return [
        int(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param or "?"
        for axis in value.type.tensor_type.shape.dim
    ]


def dtype_of(value: onnx.ValueInfoProto) -> str:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name


def tensor_shapes(path: Path) -> dict[str, tuple[str, Axes]]:
    """Output name -> (dtype, shape), free axes by name."""
    graph = onnx.load(path, load_external_data=False)
    return {value.name: (dtype_of(value), axes_of(value)) for value in graph.graph.output}
