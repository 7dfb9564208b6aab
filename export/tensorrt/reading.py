"""What a built engine computes in, layer by layer: an engine may be called fp16 and be fp32 throughout.

Where the engine can be loaded, TensorRT's inspector describes its layers. Where it cannot, as on a machine without a
GPU, the builder's own list of them is read, which it logs when it has finished. Both are of the engine, not of the
request. One layer of that list, shortened:

    Name: node_conv2d_3_myl0_7, LayerType: correlation, Inputs: [ { Name: relu_2, Datatype: Half, ... }],
    Constants: [ { Name: weights, Datatype: Half, ... }], Outputs: [...], Metadata: [ONNX Layer: node_conv2d_3]

The proof looks at products: convolutions and matrix products, where the time goes and where precision is lost. Which
type the twin asks for, each by its name, is read from the parsed network, in which every tensor has its type.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from export.errors import ExportError

Precision = Literal["fp32", "fp16", "int8"]

# Narrowest first. TensorRT 10 writes 'Row major linear FP16 format' as 'Format/Datatype', 11 'Half' as 'Datatype'.
TYPES = {"int8": "int8", "fp8": "fp8", "fp16": "fp16", "half": "fp16", "bf16": "bf16", "fp32": "fp32", "float": "fp32"}
WORD = re.compile(r"\b(" + "|".join(TYPES) + r")\b", re.IGNORECASE)
NARROWEST = tuple(dict.fromkeys(TYPES.values()))
OTHER = "other"  # indices, conditions, shapes

ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
LIST_BEGINS = "Layers:"
FUSED = "kgen"  # generated code: padding and casts around a product carry its node's name too
LEAST = 0.9  # of the products that the twin asks for in a precision and the engine names, this share must have it
LEAST_NAMED = 0.5  # and of those it asks for, the engine must name this share


class Layer(BaseModel):
    """One layer of an engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str
    type: str  # the narrowest that it reads, `OTHER` without any
    nodes: list[str]  # of the graph, that it computes


def layers_of_inspector(text: str) -> list[Layer]:
    """From `EngineInspector.get_engine_information(JSON)`, whose fields have other names in TensorRT 10 and 11."""
    try:
        described = json.loads(text)
    except ValueError:
        return []
    layers = described.get("Layers", []) if isinstance(described, dict) else []
    return [_layer(entry) for entry in layers if isinstance(entry, dict)]


def layers_of_log(message: str) -> list[Layer]:
    """From the builder's message that begins with `LIST_BEGINS`."""
    lines = message.split("\n\n")[0].splitlines()[1:]
    return [_layer(_fields(line)) for line in lines if line.startswith("Name: ")]


def _layer(entry: Mapping[str, Any]) -> Layer:
    read = f"{_types(entry.get('Inputs'))} {_types(entry.get('Constants'))}"
    narrowest = _narrowest(read) if WORD.search(read) else _narrowest(_types(entry.get("Outputs")))
    return Layer(
        name=str(entry.get("Name", "")),
        kind=str(entry.get("LayerType", "")),
        type=narrowest,
        nodes=ONNX_NODE.findall(str(entry.get("Metadata", ""))),
    )


def _types(tensors: Any) -> str:
    """What the inspector says of the types of tensors; their names may hold such words too. A line has nothing else."""
    if isinstance(tensors, str):
        return tensors
    described = [tensor for tensor in tensors or [] if isinstance(tensor, dict)]
    return " ".join(str(tensor[key]) for tensor in described for key in tensor if "datatype" in key.lower())


def _fields(line: str) -> dict[str, str]:
    names = ("Name", "LayerType", "Inputs", "Constants", "Outputs", "TacticName", "StreamId", "Metadata")
    pattern = r"(?:^|, )(" + "|".join(names) + "): "
    parts = re.split(pattern, _outside_braces(line))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _outside_braces(line: str) -> str:
    """Of a tensor, which stands in braces, the type alone: its fields have the names of the layer's."""
    return re.sub(r"\{[^}]*?Datatype: (\w+)[^}]*\}", r"\1", line)


def _narrowest(text: str) -> str:
    found = {TYPES[word.lower()] for word in WORD.findall(text)}
    return min(found, key=NARROWEST.index, default=OTHER)


def by_type(layers: Iterable[Layer]) -> dict[str, int]:
    """How many layers compute in each type, narrowest first."""
    counts = Counter(layer.type for layer in layers)
    return {name: counts[name] for name in (*NARROWEST, OTHER) if counts[name]}


def products_found(layers: Iterable[Layer], asked: Mapping[str, str]) -> dict[str, str]:
    """Name of a product -> the type it is computed in, of those that the engine still has by name.

    Args:
        asked: name of a product -> the type that the twin asks for.
    """
    candidates: dict[str, list[Layer]] = {}
    for layer in layers:
        for node in set(layer.nodes) & asked.keys():
            if layer.type != OTHER:
                candidates.setdefault(node, []).append(layer)
    found = {}
    for node, several in candidates.items():
        proper = [layer for layer in several if layer.kind != FUSED] or several
        found[node] = min((layer.type for layer in proper), key=NARROWEST.index)
    return found


def check_precision(wanted: Precision, asked: Mapping[str, str], found: Mapping[str, str]) -> float:
    """The share of all products that are computed in `wanted`.

    Raises:
        ExportError: what was asked for is not in the engine.
    """
    if not found:
        raise ExportError(
            "the engine's layers name no node of the graph, so its precision cannot be proven; this is a bug"
        )
    asking = [node for node, type_ in asked.items() if type_ == wanted]
    if not asking and wanted != "fp32":
        raise ExportError(
            f"the manifest says {wanted} and model.trt.onnx computes nothing in it; "
            f"export it again with --precision {wanted}"
        )
    missing = [node for node in asking if node in found and found[node] != wanted]
    known = [node for node in asking if node in found]
    if len(known) - len(missing) < LEAST * len(known) or len(known) < LEAST_NAMED * len(asking):
        example = f", as {missing[0]} in {found[missing[0]]}" if missing else ""
        raise ExportError(
            f"{len(asking)} convolutions and matrix products should be {wanted}, and {len(known) - len(missing)} are "
            f"in the built engine{example}; this builder cannot do it: try another version, or another precision"
        )
    return sum(type_ == wanted for type_ in found.values()) / len(found)
