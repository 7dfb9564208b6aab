"""A graph that begins behind its uint8 head: at the float picture that the first convolution sees.

torchvision resizes pictures as floats, so no bytes give its network input exactly. To compare strictly, the exported
graph itself is kept, and only what feeds its first convolution becomes an input.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from export.errors import ExportError

NETWORK_INPUT = "network_input"


def without_head(path: Path, target: Path) -> Path:
    """Write a graph whose first convolution reads the input `network_input`, float32 (B, 3, h, w), to `target`.

    `images` stays an input: the shapes of the graph may be told by it.

    Raises:
        ExportError: nothing that depends on the picture goes through a convolution.
    """
    model = onnx.load(path)
    graph = model.graph
    depends = {"images"}
    for node in graph.node:  # in the order of computation, as the standard demands
        if not depends & set(node.input):
            continue
        if node.op_type == "Conv" and node.input[0] in depends:
            pixels = node.input[0]
            break
        depends |= set(node.output)
    else:
        raise ExportError(f"{path.name} has no convolution that sees the picture; this is a bug in the exported model")
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == pixels and node.op_type == "Conv":
                node.input[i] = NETWORK_INPUT
    shape: list[str | int | None] = ["batch", 3, "network_height", "network_width"]
    graph.input.append(onnx.helper.make_tensor_value_info(NETWORK_INPUT, onnx.TensorProto.FLOAT, shape))
    onnx.save(model, target)
    return target
