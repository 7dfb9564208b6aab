"""What an engine computes in, from the descriptions that TensorRT 10, 11 and the builder's log give."""

from __future__ import annotations

import json

import pytest

from export.errors import ExportError
from export.tensorrt.reading import (
    Layer,
    by_type,
    check_precision,
    layers_of_inspector,
    layers_of_log,
    products_found,
)

LOG = """Layers:
Name: shapes, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: pad, LayerType: kgen, Inputs: [ { Name: images, Dimensions: [-1,64,64,3], Datatype: UInt8, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: r0, Dimensions: [-1,4,64,64], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: __myl_Cast, StreamId: 0, Metadata: [ONNX Layer: cast][ONNX Layer: conv0]
Name: conv0, LayerType: correlation, Inputs: [ { Name: r0, Dimensions: [-1,4,64,64], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [32,4,3,3], Datatype: Half, Format: x }, { Name: one, Dimensions: [1], Datatype: Float, Format: x }], Outputs: [ { Name: r1, Dimensions: [-1,32,64,64], Datatype: Half, Format: x }], TacticName: STUB, StreamId: 0, Metadata: [ONNX Layer: conv0][ONNX Layer: relu0]
Name: conv1, LayerType: correlation, Inputs: [ { Name: r1, Dimensions: [-1,4,64,64], Datatype: Float, Format: x }], Constants: [], Outputs: [], TacticName: STUB, StreamId: 0, Metadata: [ONNX Layer: conv1]

I/O Tensors:
 Name: images, IOMode: Input, DataType: Float
"""  # noqa: E501, W291 - as TensorRT writes it


def inspector(version: int) -> str:
    """One int8 and one fp16 convolution, as TensorRT's inspector describes them in JSON."""

    def tensor(words: str, name: str) -> dict[str, object]:
        described = {"Format/Datatype": words} if version == 10 else {"Datatype": name, "Format": "(Linear) Row major"}
        return {"Name": "x", "Dimensions": [1, 8, 4, 4], **described}

    half = tensor("Channel major FP16 format where channel % 8 == 0", "Half")
    whole = tensor("Thirty-two wide channel vectorized row major Int8 format", "Int8")
    wide = tensor("Row major linear FP32", "Float")
    layers = [
        {"Name": "a", "LayerType": "CaskConvolution", "Inputs": [whole], "Outputs": [half],
         "Metadata": "[ONNX Layer: a]"},
        {"Name": "b", "LayerType": "CaskConvolution", "Inputs": [half, wide], "Outputs": [wide],
         "Metadata": "[ONNX Layer: b]\u001e[ONNX Layer: relu]"},
        {"Name": "reformat", "LayerType": "Reformat", "Inputs": [], "Outputs": [wide]},
    ]  # fmt: skip
    return json.dumps({"Layers": layers, "Bindings" if version == 10 else "I/O Tensors": []})


@pytest.mark.parametrize("version", [10, 11])
def test_the_inspector_is_read_in_both_dialects(version: int) -> None:
    layers = layers_of_inspector(inspector(version))
    assert by_type(layers) == {"int8": 1, "fp16": 1, "fp32": 1}
    assert products_found(layers, {"a": "int8", "b": "fp16"}) == {"a": "int8", "b": "fp16"}


def test_a_tensor_may_be_called_like_a_type() -> None:
    layer = {"Name": "conv", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv]", "Outputs": []}
    tensor = {"Name": "model.half.weight", "Location": "int8", "Datatype": "Float", "Format": "Row major linear"}
    (found,) = layers_of_inspector(json.dumps({"Layers": [layer | {"Inputs": [tensor]}]}))
    assert found.type == "fp32"


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"Layers": ["conv", "relu"]}'])
def test_an_engine_that_describes_no_layer_has_none(text: str) -> None:
    assert layers_of_inspector(text) == []


def test_the_list_of_the_builder_is_read_and_nothing_after_it() -> None:
    layers = layers_of_log(LOG)
    assert [(layer.name, layer.kind, layer.type) for layer in layers] == [
        ("shapes", "shape_call", "other"),
        ("pad", "kgen", "fp16"),
        ("conv0", "correlation", "fp16"),
        ("conv1", "correlation", "fp32"),
    ]
    assert layers[2].nodes == ["conv0", "relu0"]


def test_a_product_is_what_its_own_layer_says_and_not_what_prepares_it() -> None:
    layers = [
        Layer(name="quantise", kind="kgen", type="int8", nodes=["conv"]),
        Layer(name="conv", kind="correlation", type="fp32", nodes=["conv"]),
        Layer(name="both", kind="kgen", type="fp16", nodes=["product"]),
    ]
    assert products_found(layers, {"conv": "int8", "product": "fp16", "gone": "fp16"}) == {
        "conv": "fp32",
        "product": "fp16",
    }


def test_the_share_is_of_all_products() -> None:
    asked = {"a": "fp16", "b": "fp16", "c": "fp32", "d": "fp32"}
    assert check_precision("fp16", asked, asked) == 0.5
    assert check_precision("fp32", {"a": "fp32"}, {"a": "fp32"}) == 1.0


def test_a_precision_that_is_not_in_the_engine_is_refused() -> None:
    asked = {"a": "fp16", "b": "fp16"}
    with pytest.raises(
        ExportError, match="2 convolutions and matrix products should be fp16, and 1 are in the built engine, as b"
    ):
        check_precision("fp16", asked, {"a": "fp16", "b": "fp32"})
    with pytest.raises(ExportError, match=r"the manifest says int8 and model\.trt\.onnx computes nothing in it"):
        check_precision("int8", asked, asked)
    many = {f"conv {number}": "fp16" for number in range(10)}
    with pytest.raises(ExportError, match="10 convolutions and matrix products should be fp16, and 4 are in the built"):
        check_precision("fp16", many, dict(list(many.items())[:4]))
    assert check_precision("fp16", many, dict(list(many.items())[:5])) == 1.0  # the others were joined away
    with pytest.raises(ExportError, match="name no node of the graph"):
        check_precision("fp32", {"a": "fp32"}, {})
