"""The layers of a graph that int8 is for: products of a picture's numbers with weights that stand in the file."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVERS = ("Relu", "MaxPool", "Concat", "Add", "Resize")  # what int8 numbers may pass through on their way


@dataclass(frozen=True, slots=True)
class Layer:
    """One product."""

    node: str
    kind: str
    input: str
    weight: str  # initialiser; its name is the module's in PyTorch
    output: str
    axis: int  # of the weight, along which output channels lie
    last: bool  # no other layer lies behind it that this one reaches by movers alone


def layers_of(graph: onnx.ModelProto) -> list[Layer]:
    """In the order of the graph."""
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    readers = _readers(graph)
    found = []
    for node in graph.graph.node:
        if node.op_type in PRODUCTS and len(node.input) > 1 and node.input[1] in weights:
            axis = _channel_axis(node, len(weights[node.input[1]].dims))
            found.append(
                Layer(
                    node.name,
                    node.op_type,
                    node.input[0],
                    node.input[1],
                    node.output[0],
                    axis,
                    last=not _meets_a_product(node.output[0], readers),
                )
            )
    return found


def movers_of(graph: onnx.ModelProto, layers: list[Layer]) -> list[str]:
    """Nodes between the given layers that only move, add or cut their numbers: everything they read comes from such a
    layer or another mover, and somebody among these reads them. Box arithmetic has such nodes too; it is not met here.
    """
    chosen = {layer.node for layer in layers}
    constants = {tensor.name for tensor in graph.graph.initializer}
    constants |= {node.output[0] for node in graph.graph.node if node.op_type == "Constant"}
    makers = {output: node for node in graph.graph.node for output in node.output}
    readers = _readers(graph)
    movers = {node.name: node for node in graph.graph.node if node.op_type in MOVERS and _moves_exactly(node)}

    def stays(node: onnx.NodeProto) -> bool:
        data = node.input[:1] if node.op_type == "Resize" else node.input
        fed = all(name in makers and makers[name].name in chosen | set(movers) for name in data)
        read = [reader.name for reader in readers.get(node.output[0], [])]
        return fed and bool(data) and bool(read) and all(name in chosen | set(movers) for name in read)

    while gone := [name for name, node in movers.items() if not stays(node)]:
        for name in gone:
            del movers[name]
    return list(movers)


def weight_of(graph: onnx.ModelProto, layer: Layer) -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in graph.graph.initializer if tensor.name == layer.weight)
    return found


def name_nodes(graph: onnx.ModelProto) -> None:
    """Give every node a name of its own; quantisers go by names."""
    taken: set[str] = set()
    for number, node in enumerate(graph.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}_named"
        taken.add(node.name)


def _readers(graph: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _meets_a_product(value: str, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    waiting, seen = [value], set[str]()
    while waiting:
        name = waiting.pop()
        for node in readers.get(name, []):
            if node.op_type in PRODUCTS:
                return True
            if node.op_type in (*MOVERS, "Flatten", "Reshape", "Slice") and node.output[0] not in seen:
                seen.add(node.output[0])
                waiting.append(node.output[0])
    return False


def _moves_exactly(node: onnx.NodeProto) -> bool:
    """Resize only where it repeats pixels."""
    mode = next((a.s.decode() for a in node.attribute if a.name == "mode"), "nearest")
    return node.op_type != "Resize" or mode == "nearest"


def _channel_axis(node: onnx.NodeProto, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1 if node.op_type == "ConvTranspose" else rank - 1
