"""Which weights int8 must leave alone: every one is tried alone, on pictures, down to the network's answers.

One graph does it for all: beside the numbers that go into a layer stand the same numbers quantised, and an input
`switches` says of every weight which of the two its layers get: a head that runs on every level of a pyramid is
several layers with one weight, and in int8 in all of them or in none.

    x -------------------- Where(switches[k]) -> layer k -> ...
     \\-> Q -> DQ --------/

Weights are then left out in the order of what they cost alone, as few as bring the whole within the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.precision.layers import Layer, weight_of
from export.precision.quantise import Ranges, Scheme, session_of
from server.distance import distance
from server.engines import Tensors

BOUND = 0.05  # as `distance` measures, of all layers together
SWITCHES = "switches"


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What was measured, and what follows from it."""

    alone: dict[str, float]  # weight -> distance from fp32 with its layers alone in int8
    left_out: list[str]  # weights that stay in fp32, the costliest first
    everything: float  # distance with all layers in int8
    distance: float  # with those that are left


def measure(
    graph: onnx.ModelProto,
    layers: Sequence[Layer],
    ranges: Ranges,
    scheme: Scheme,
    pictures: Sequence[Tensors],
    legend: dict[str, str],
    bound: float = BOUND,
    tell: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """
    Args:
        pictures: batches of one; a few, each is run once for every weight.
        bound: distance from fp32 that is accepted; where even one weight alone passes it, that one goes first.
    """
    weights = _weights(layers)
    session = session_of(with_switches(graph, layers, ranges, scheme))
    names = [value.name for value in session.get_outputs()]
    taken = {value.name for value in session.get_inputs()}

    def answers(switches: NDArray[np.bool_]) -> list[Tensors]:
        fed = [{n: t for n, t in picture.items() if n in taken} | {SWITCHES: switches} for picture in pictures]
        return [dict(zip(names, session.run(names, inputs), strict=True)) for inputs in fed]

    def far(on: Sequence[int]) -> float:
        switches = np.zeros(len(weights), np.bool_)
        switches[list(on)] = True
        return distance(answers(switches), wanted, legend)

    wanted = answers(np.zeros(len(weights), np.bool_))
    alone = []
    for number in range(len(weights)):
        alone.append(far([number]))
        if number % 16 == 15:
            tell(f"{number + 1}/{len(weights)}")
    order = sorted(range(len(weights)), key=lambda number: -alone[number])
    found: dict[int, float] = {}

    def enough(left_out: int) -> bool:
        found[left_out] = far(order[left_out:])
        return found[left_out] <= bound

    count = _fewest(enough, len(weights))
    chosen = [weights[number] for number in order[:count]]
    return Sensitivity(dict(zip(weights, alone, strict=True)), chosen, found[0], found.get(count, 0.0))


def with_switches(graph: onnx.ModelProto, layers: Sequence[Layer], ranges: Ranges, scheme: Scheme) -> onnx.ModelProto:
    """The graph with one more input, bool (weights,), in the order of their layers: which of them are quantised."""
    built = onnx.ModelProto()
    built.CopyFrom(graph)
    del built.graph.node[:]
    switches = {weight: f"switch.{number}" for number, weight in enumerate(_weights(layers))}
    built.graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(switches)]))
    known = {layer.node: (number, layer) for number, layer in enumerate(layers)}

    def constant(name: str, value: NDArray[np.generic]) -> str:
        built.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def quantised(value: str, switch: str, stem: str) -> list[onnx.NodeProto]:
        scale, zero = grid(ranges[value], scheme)
        told = [constant(f"{stem}.scale", np.array(scale, np.float32)), constant(f"{stem}.zero", zero)]
        return [
            helper.make_node("QuantizeLinear", [value, *told], [f"{stem}.q"]),
            helper.make_node("DequantizeLinear", [f"{stem}.q", *told], [f"{stem}.dq"]),
            helper.make_node("Where", [switch, f"{stem}.dq", value], [f"{stem}.chosen"]),
        ]

    for number, switch in enumerate(switches.values()):
        index = constant(f"{switch}.index", np.array(number, np.int64))
        built.graph.node.append(helper.make_node("Gather", [SWITCHES, index], [switch]))
    for node in graph.graph.node:
        if node.name not in known:
            built.graph.node.append(node)
            continue
        number, layer = known[node.name]
        stem, switch = f"layer.{number}", switches[layer.weight]
        built.graph.node.extend(quantised(layer.input, switch, f"{stem}.in"))
        weight = numpy_helper.to_array(weight_of(graph, layer))
        rounded = constant(f"{stem}.weight", rounded_weight(weight, layer.axis, scheme))
        built.graph.node.append(helper.make_node("Where", [switch, rounded, layer.weight], [f"{stem}.weight.chosen"]))
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        changed.input[0], changed.input[1] = f"{stem}.in.chosen", f"{stem}.weight.chosen"
        if not (scheme.between and layer.last):
            built.graph.node.append(changed)
            continue
        raw = f"{layer.output}.raw"
        changed.output[0] = raw
        ranges = ranges | {raw: ranges[layer.output]}
        ending = quantised(raw, switch, f"{stem}.out")
        ending[-1].output[0] = layer.output
        built.graph.node.extend([changed, *ending])
    return built


def grid(limits: tuple[float, float], scheme: Scheme) -> tuple[float, NDArray[np.generic]]:
    """Step and zero point of a tensor whose values lie within these limits, zero among them."""
    low, high = limits
    if scheme.signed:
        return max(abs(low), abs(high), 1e-12) / 127, np.array(0, np.int8)
    step = max(high - low, 1e-12) / 255
    return step, np.array(np.clip(round(-low / step), 0, 255), np.uint8)


def rounded_weight(weight: NDArray[np.float32], axis: int, scheme: Scheme) -> NDArray[np.float32]:
    """A weight as it is after int8 and back, each output channel on its own grid."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    steps = np.abs(weight).max(axis=others, keepdims=True) / (64 if scheme.narrow_weights else 127)
    steps = np.where(steps > 0, steps, 1)
    return np.asarray(np.round(weight / steps) * steps, np.float32)


def _weights(layers: Sequence[Layer]) -> list[str]:
    """Each once."""
    return list(dict.fromkeys(layer.weight for layer in layers))


def _fewest(enough: Callable[[int], bool], most: int) -> int:
    """The least count that is enough, where more is never worse; tried by doubling, then by halves."""
    high = 0
    low = -1
    while high < most and not enough(high):
        low, high = high, min(most, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high
