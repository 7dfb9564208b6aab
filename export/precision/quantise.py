"""int8 in a graph file: quantise and dequantise (QDQ) around its products, weights per channel.

Weights become int8, symmetric. What a scheme says is how a picture's numbers are treated, because runtimes differ:

    ONNXRUNTIME   uint8 with a zero point, also on what passes between products. Its CPU kernels are for these: signed
                  ones ran slower than fp32. Weights keep 7 bits, for on a CPU without VNNI two products of 8 bits do
                  not fit the 16 bits they are added in, and the answer would be another one there.
    TENSORRT      int8 without a zero point, on what goes into a product and nowhere else: TensorRT takes no other, and
                  joins the quantisation of one layer to the end of the layer before by itself.

Ranges are the least and largest value that any calibration picture gave.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from export.errors import ExportError
from export.precision.layers import MOVERS, PRODUCTS, Layer, layers_of, movers_of, name_nodes
from server.cores import usable_cores
from server.engines import Tensors

Ranges = dict[str, tuple[float, float]]  # tensor -> least and largest value


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the numbers that pictures make are quantised."""

    name: str
    signed: bool  # int8 around zero; otherwise uint8 with a zero point
    between: bool  # what passes between products too, and what comes out of them
    narrow_weights: bool  # 7 bits


ONNXRUNTIME = Scheme("uint8 activations, 7-bit weights", signed=False, between=True, narrow_weights=True)
TENSORRT = Scheme("int8 activations and weights, symmetric", signed=True, between=False, narrow_weights=False)


def prepared(path: Path) -> onnx.ModelProto:
    """The graph with a name on every node and its tensors' types known: what the functions here take.

    Raises:
        ExportError: nothing in it can be quantised.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load(path))
    name_nodes(graph)
    if not layers_of(graph):
        raise ExportError("the graph holds no convolution and no product with weights; int8 has nothing to act on")
    return graph


def calibrate(
    graph: onnx.ModelProto,
    layers: Sequence[Layer],
    pictures: Iterable[Tensors],
    tell: Callable[[str], None] = lambda text: None,
) -> Ranges:
    """Run the pictures, one after the other, and keep the range of every tensor that may be quantised.

    Raises:
        ExportError: a range is not finite.
    """
    movers = set(movers_of(graph, list(layers)))
    wanted = {name for layer in layers for name in (layer.input, layer.output)}
    wanted |= {node.output[0] for node in graph.graph.node if node.name in movers}
    watching = onnx.ModelProto()
    watching.CopyFrom(graph)
    del watching.graph.output[:]
    names = sorted(wanted)
    for name in names:
        for kind in ("Min", "Max"):
            output = f"{name}.{kind}"
            watching.graph.node.append(helper.make_node(f"Reduce{kind}", [name], [output], keepdims=0))
            watching.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    session = session_of(watching)
    inputs = {value.name for value in session.get_inputs()}
    low, high = np.zeros(len(names)), np.zeros(len(names))  # zero is in every range: padding is made of it
    for number, picture in enumerate(pictures, start=1):
        found = np.array(session.run(None, {name: picture[name] for name in inputs}), np.float64).reshape(-1, 2)
        low, high = np.minimum(low, found[:, 0]), np.maximum(high, found[:, 1])
        if number % 16 == 0:
            tell(str(number))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        worst = names[int(np.flatnonzero(~np.isfinite(low + high))[0])]
        raise ExportError(
            f"'{worst}' takes a value that is not finite on a calibration picture; the fp32 model is broken"
        )
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def quantise(graph: onnx.ModelProto, out: Path, ranges: Ranges, layers: Sequence[Layer], scheme: Scheme) -> None:
    """Write the graph with these layers in int8.

    Args:
        graph: of `prepared`.
        ranges: of `calibrate`, for the same graph.
        layers: those that become int8; the others stay as they are.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    nodes = [layer.node for layer in layers] + (movers_of(graph, list(layers)) if scheme.between else [])
    options = {
        "ActivationSymmetric": scheme.signed,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": [] if scheme.between else list(PRODUCTS),
    }
    told = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with _quiet():
        quantizer = QDQQuantizer(
            copied,
            True,
            scheme.narrow_weights,
            QuantType.QInt8,
            QuantType.QInt8 if scheme.signed else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, told),
            nodes,
            [],
            [*PRODUCTS, *MOVERS],
            options,
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # it appends what it makes
    written: onnx.ModelProto = quantizer.model.model
    _spare(written, set(nodes), scheme)
    del written.metadata_props[:]
    onnx.save(written, out)


def _spare(graph: onnx.ModelProto, nodes: set[str], scheme: Scheme) -> None:
    """Give those that were not meant the numbers as they were: the quantiser lays its pair between a tensor and all who
    read it. What passes between products in int8 stays so for those that only read it there, which costs no kernel.
    """
    sources = {node.output[0]: node.input[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    weights = {tensor.name for tensor in graph.graph.initializer}
    pairs = {
        node.output[0]: sources[node.input[0]]
        for node in graph.graph.node
        if node.op_type == "DequantizeLinear" and sources.get(node.input[0], "") not in {"", *weights}
    }
    for node in graph.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.name in nodes:
            continue
        if node.op_type in PRODUCTS or not scheme.between:
            for place, name in enumerate(node.input):
                node.input[place] = pairs.get(name, name)
    for _ in range(2):  # a pair that nobody reads any more: its end, then its beginning
        read = {name for node in graph.graph.node for name in node.input} | {v.name for v in graph.graph.output}
        idle = [
            n
            for n in graph.graph.node
            if n.op_type in ("QuantizeLinear", "DequantizeLinear") and n.output[0] not in read
        ]
        for node in idle:
            graph.graph.node.remove(node)


def session_of(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """On the CPU, with all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
