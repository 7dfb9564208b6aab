"""Work that a graph need not do: the same network, rewritten so that a runtime has less to compute.

Exporters leave three things to the runtime that ONNX Runtime does not do by itself:

    shapes      Resize -> Add, the way down a feature pyramid. No file says that a Resize keeps the batch, so the sum is
                taken for one of unlike tensors, and made in a pass of its own instead of inside the convolution before
                it. And Shape -> Slice -> Concat -> Reshape computes in every run what never changes.
    pooling     The mean, or the largest, of 9 x 9 cells takes 81 steps a cell; of 9 x 1 and then of 1 x 9, 18. The
                pyramids of pools in the YOLO family are such.
    scaling     x / std -> Conv passes over the picture once more than a convolution whose weights are divided by std.

Shapes are inferred at two batch sizes and compared: what grows with the batch is its axis, what stays is a number, and
of all else nothing is said. Answers are the same but for rounding; whoever calls this proves it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.laws import axes_of

TWO_BATCHES = (7, 11)  # an axis that is 7 and then 11 long is the batch
SMALL_WEIGHT = 1000  # numbers; targets and factors of shapes are
LARGE_POOL = 5  # cells on a side; of 3 x 3, two passes cost what they save

Axes = list[int | str | None]  # of a tensor: numbers, the name of the batch axis, None where nothing is known


def spare(graph: ModelProto) -> list[str]:
    """Rewrite a graph that keeps the laws, in place.

    Returns:
        What was done, a line each; nothing where there was nothing to do.
    """
    pools, scales = _split_pools(graph), _fold_scales(graph)
    batch = _name_batch(graph)
    shapes = _shapes(graph, batch)
    reshapes = _settle_reshapes(graph, shapes)
    _drop_unused(graph)
    named = _write_shapes(graph, shapes, batch)
    done = {
        "tensors whose batch axis the file left open, now named": named,
        "shapes computed in every run, now numbers": reshapes,
        "large pools, now a tall and a wide one each": pools,
        "scalings, now in the weights of the convolution after them": scales,
    }
    return [f"{count} {what}" for what, count in done.items() if count]


def _split_pools(graph: ModelProto) -> int:
    """Of `h x w` cells into `h x 1` and `1 x w`. A mean over the cells that are there is one of means, too, as their
    number is that of rows by that of columns."""
    nodes: list[NodeProto] = []
    count = 0
    for node in graph.graph.node:
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        size = options.get("kernel_shape", [])
        if not _is_large_pool(node, options):
            nodes.append(node)
            continue
        pads = options.get("pads", [0, 0, 0, 0])
        keep = {"count_include_pad": options["count_include_pad"]} if "count_include_pad" in options else {}
        between = f"{node.output[0]}/tall"
        nodes.append(
            helper.make_node(
                node.op_type,
                [node.input[0]],
                [between],
                name=f"{node.name}/tall",
                kernel_shape=[size[0], 1],
                pads=[pads[0], 0, pads[2], 0],
                **keep,
            )
        )
        nodes.append(
            helper.make_node(
                node.op_type,
                [between],
                [node.output[0]],
                name=f"{node.name}/wide",
                kernel_shape=[1, size[1]],
                pads=[0, pads[1], 0, pads[3]],
                **keep,
            )
        )
        count += 1
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return count


def _is_large_pool(node: NodeProto, options: dict[str, object]) -> bool:
    size = options.get("kernel_shape")
    return (
        node.op_type in ("AveragePool", "MaxPool")
        and len(node.output) == 1  # no places of the largest
        and isinstance(size, list)
        and len(size) == 2
        and min(size) >= LARGE_POOL
        and options.get("strides", [1, 1]) == [1, 1]
        and options.get("dilations", [1, 1]) == [1, 1]
        and options.get("auto_pad", b"NOTSET") == b"NOTSET"
    )


def _fold_scales(graph: ModelProto) -> int:
    """A division or product by a constant, a number for each channel, into the weights of the convolution after it."""
    constants = _constants(graph)
    makers = {name: node for node in graph.graph.node for name in node.output}
    uses = _uses(graph)
    count = 0
    for conv in graph.graph.node:
        scaling = makers.get(conv.input[0]) if conv.op_type == "Conv" else None
        if scaling is None or scaling.op_type not in ("Div", "Mul") or uses[scaling.output[0]] != 1:
            continue
        weights = constants.get(conv.input[1])
        source, by = scaling.input
        if scaling.op_type == "Mul" and source in constants:
            source, by = by, source
        if weights is None or by not in constants or weights.data_type != TensorProto.FLOAT:
            continue
        channels = _per_channel(numpy_helper.to_array(constants[by]), weights.dims[1])
        if channels is None or any(option.name == "group" and option.i != 1 for option in conv.attribute):
            continue
        factors = 1 / channels if scaling.op_type == "Div" else channels
        if not (np.isfinite(factors).all() and factors.all()):
            continue
        scaled = numpy_helper.to_array(weights) * factors.reshape(1, -1, *[1] * (len(weights.dims) - 2))
        name = f"{weights.name}/scaled_{count}"
        graph.graph.initializer.append(numpy_helper.from_array(scaled.astype(np.float32), name))
        conv.input[0], conv.input[1] = source, name
        count += 1
    return count


def _per_channel(constant: NDArray[np.float32], channels: int) -> NDArray[np.float64] | None:
    """A constant beside pictures (B, C, h, w) as C numbers; None where it is not the same for all pixels."""
    if constant.size not in (1, channels) or (constant.size > 1 and constant.shape[-3:] != (channels, 1, 1)):
        return None
    return np.broadcast_to(constant.astype(np.float64).ravel(), (channels,))


def _name_batch(graph: ModelProto) -> str:
    """The name of the batch axis, the same on all inputs from here on."""
    free = list(_free_inputs(graph))
    name = next((value.type.tensor_type.shape.dim[0].dim_param for value in free), "") or "B"
    for value in free:
        value.type.tensor_type.shape.dim[0].dim_param = name
    return name


def _shapes(graph: ModelProto, batch: str) -> dict[str, tuple[int, Axes]]:
    """Of every tensor whose rank is known, its type of element and its axes."""
    few, many = (_inferred(graph, size) for size in TWO_BATCHES)
    return {
        name: (kind, [_axis(pair, batch) for pair in zip(axes, many[name][1], strict=True)])
        for name, (kind, axes) in few.items()
        if name in many and len(many[name][1]) == len(axes)
    }


def _axis(lengths: tuple[int | str, int | str], batch: str) -> int | str | None:
    if lengths == TWO_BATCHES:
        return batch
    return lengths[0] if isinstance(lengths[0], int) and lengths[0] == lengths[1] else None


def _inferred(graph: ModelProto, batch: int) -> dict[str, tuple[int, list[int | str]]]:
    """Shapes at one batch size, by ONNX's own rules. Large weights are left out: of them only the shape matters."""
    fixed = ModelProto(ir_version=graph.ir_version, opset_import=graph.opset_import, functions=graph.functions)
    fixed.graph.name = graph.graph.name
    fixed.graph.node.extend(graph.graph.node)
    fixed.graph.input.extend(graph.graph.input)
    for value in _free_inputs(fixed):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    listed = {value.name for value in graph.graph.input}  # older exporters list the weights too
    for weight in graph.graph.initializer:
        if np.prod(weight.dims) <= SMALL_WEIGHT:
            fixed.graph.initializer.append(weight)
        elif weight.name not in listed:
            fixed.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    for value in graph.graph.output:  # what it says of the batch is older than the number
        told_type = helper.make_tensor_type_proto(value.type.tensor_type.elem_type, None)
        fixed.graph.output.append(helper.make_value_info(value.name, told_type))
    told = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    return {
        value.name: (value.type.tensor_type.elem_type, axes_of(value))
        for value in (*told.value_info, *told.output)
        if value.type.tensor_type.HasField("shape")
    }


def _free_inputs(graph: ModelProto) -> Iterator[onnx.ValueInfoProto]:
    return (value for value in graph.graph.input if isinstance(axes_of(value)[0], str))


def _settle_reshapes(graph: ModelProto, shapes: dict[str, tuple[int, Axes]]) -> int:
    """Targets that are computed, but are numbers all, or all but one."""
    constants = _constants(graph)
    count = 0
    for node in graph.graph.node:
        if node.op_type != "Reshape" or node.input[1] in constants or node.output[0] not in shapes:
            continue
        _, axes = shapes[node.output[0]]
        target = [axis if isinstance(axis, int) else -1 for axis in axes]
        if target.count(-1) > 1 or 0 in target:
            continue
        name = f"{node.output[0]}/shape"
        graph.graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), name))
        node.input[1] = name
        count += 1
    return count


def _write_shapes(graph: ModelProto, shapes: dict[str, tuple[int, Axes]], batch: str) -> int:
    """Into the file, which keeps what else it says; how many tensors have their batch axis named that had not."""
    made = {name for node in graph.graph.node for name in node.output} - {value.name for value in graph.graph.output}
    before = {value.name: value for value in graph.graph.value_info if value.name in made}
    count = 0
    for name in sorted(made & set(shapes)):
        kind, axes = shapes[name]
        said = axes_of(before[name]) if name in before else []
        if len(said) == len(axes):
            axes = [_or_else(ours, theirs) for ours, theirs in zip(axes, said, strict=True)]
        count += axes[:1] == [batch] and said[:1] != [batch]
        before[name] = helper.make_tensor_value_info(name, kind, axes)
    del graph.graph.value_info[:]
    graph.graph.value_info.extend(before.values())
    return count


def _or_else(ours: int | str | None, theirs: int | str) -> int | str | None:
    """An axis as the file has it, where nothing else is known of it."""
    return ours if ours is not None or theirs == "?" else theirs


def _drop_unused(graph: ModelProto) -> None:
    """Nodes and weights that nothing takes from any more."""
    uses = _uses(graph)
    for node in reversed(graph.graph.node):  # those who use come after those they use
        if not any(uses[name] for name in node.output):
            uses.subtract(node.input)
            node.op_type = ""
    kept = [node for node in graph.graph.node if node.op_type]
    weights = [weight for weight in graph.graph.initializer if uses[weight.name]]
    dropped = {weight.name for weight in graph.graph.initializer} - {weight.name for weight in weights}
    inputs = [value for value in graph.graph.input if value.name not in dropped]  # where they may be listed too
    del graph.graph.node[:], graph.graph.initializer[:], graph.graph.input[:]
    graph.graph.node.extend(kept)
    graph.graph.initializer.extend(weights)
    graph.graph.input.extend(inputs)


def _constants(graph: ModelProto) -> dict[str, TensorProto]:
    """Tensors that are the same in every run."""
    nodes = (node for node in graph.graph.node if node.op_type == "Constant")
    told = {node.output[0]: node.attribute[0].t for node in nodes if node.attribute[0].name == "value"}
    return {weight.name: weight for weight in graph.graph.initializer} | told


def _uses(graph: ModelProto) -> Counter[str]:
    """How often each tensor is taken, an output of the graph counted as once."""
    taken = Counter(name for node in graph.graph.node for name in node.input)
    taken.update(value.name for value in graph.graph.output)
    return taken
