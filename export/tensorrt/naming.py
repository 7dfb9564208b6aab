"""Which module of the model a node of the graph came from: what a reader of an error can look up in their own code.

The exporter notes the modules that a node was traced in (`pkg.torch.onnx.name_scopes`). What functions make outside any
module has no name there, but weights carry their module's: the nearest one before the node is said.
"""

from __future__ import annotations

import ast
from pathlib import Path

import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
WRAPPER = "model."  # the exporter's own module around the model


def module_of(twin: Path, name: str) -> str:
    """As in 'in unet.down.0', or 'after unet.down.0.conv1'; empty where nothing is known."""
    graph = onnx.load(twin, load_external_data=False).graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = {entry.name for entry in graph.initializer}
    seen: set[str] = set()
    waiting = [node for node in graph.node if node.name == name]
    first = True
    while waiting:
        node = waiting.pop(0)
        scope = _scope(node)
        owned = [value for value in node.input if value in weights and "." in value]
        found = scope or (owned[0].rpartition(".")[0] if owned else "")
        if found:
            return f"{'in' if first else 'after'} {found.removeprefix(WRAPPER)}"
        for value in node.input:
            if value in makers and value not in seen:
                seen.add(value)
                waiting.append(makers[value])
        first = False
    return ""


def operator_of(twin: Path, text: str) -> tuple[str, str] | None:
    """(name, operator) of the node that a builder's message speaks of; the longest name that is in it."""
    graph = onnx.load(twin, load_external_data=False).graph
    named = [node for node in graph.node if node.name and node.name in text]
    if not named:
        return None
    node = max(named, key=lambda node: len(node.name))
    return node.name, node.op_type


def _scope(node: onnx.NodeProto) -> str:
    """The innermost module: the last scope but one, for the last is the operation. Empty for the whole model."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                return ""
            modules = [scope for scope in scopes[:-1] if isinstance(scope, str) and scope.startswith(WRAPPER)]
            return modules[-1] if modules else ""
    return ""
