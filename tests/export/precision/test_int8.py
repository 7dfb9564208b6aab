"""int8 in the graph: which layers take it, how they are found, and what the two schemes write."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import ExportError
from export.graph import write_graph
from export.laws import check_laws
from export.precision import lower, sensitivity
from export.precision.layers import layers_of, movers_of, name_nodes
from export.precision.pictures import list_pictures
from export.precision.quantise import ONNXRUNTIME, TENSORRT, Scheme, calibrate, prepared, quantise
from export.precision.sensitivity import measure
from export.source import build
from server.distance import distance
from server.engines import load_engine
from tests.export.precision.networks import Weak, batch, pictures, weak_spread

SEEDS = range(1, 5)


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Path:
    return tiny_bundle / "model.onnx"


@pytest.fixture(scope="module")
def sensitive(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("sensitive") / "model.onnx"
    write_graph(weak_spread(), path)
    return prepared(path)


@pytest.mark.parametrize("scheme", [ONNXRUNTIME, TENSORRT], ids=["onnxruntime", "tensorrt"])
def test_the_graph_keeps_the_laws_and_a_row_equals_its_image_alone(tiny: Path, tmp_path: Path, scheme: Scheme) -> None:
    graph = prepared(tiny)
    layers = layers_of(graph)
    out = tmp_path / "int8.onnx"
    quantise(graph, out, calibrate(graph, layers, [batch(seed=s) for s in SEEDS]), layers, scheme)
    check_laws(out, ["inside", "offsets"])
    assert share_in_int8(onnx.load(out)) == 1.0
    engine, fp32 = load_engine(out, 2), load_engine(tiny, 2)
    several = {name: np.concatenate([batch(seed=s)[name] for s in SEEDS]) for name in ("images", "sizes")}
    together = engine.run(several)
    for row, seed in enumerate(SEEDS):
        for answer in (engine.run(batch(seed=seed)), engine.run_alone(batch(seed=seed))):
            for name, tensor in answer.items():
                assert (tensor[0] == together[name][row]).all()
    assert distance([together], [fp32.run(several)], build("models.unet:unet_tiny").masks.legend) < 0.5
    engine.close()
    fp32.close()


def share_in_int8(graph: onnx.ModelProto) -> float:
    """Of all weights of the products, how many are stored in 8 bits: 0 to 1."""
    small = large = 0
    for tensor in graph.graph.initializer:
        count = int(onnx.numpy_helper.to_array(tensor).size)
        if tensor.data_type == onnx.TensorProto.INT8 and count > 1:
            small += count
        elif tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16) and len(tensor.dims) > 1:
            large += count
    return small / max(1, small + large)


def test_tensorrt_gets_int8_around_zero_at_the_inputs_of_products_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    graph = prepared(tiny)
    layers = layers_of(graph)
    out = tmp_path / "int8.onnx"
    quantise(graph, out, calibrate(graph, layers, [batch()]), layers, TENSORRT)
    lowered = onnx.load(out)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in lowered.graph.initializer}
    pairs = [node for node in lowered.graph.node if node.op_type == "DequantizeLinear"]
    assert all(stored[node.input[2]].dtype == np.int8 and not stored[node.input[2]].any() for node in pairs)
    readers = {name: node.op_type for node in lowered.graph.node for name in node.input}
    assert {readers[node.output[0]] for node in pairs} == {"Conv"}


@pytest.mark.parametrize("scheme", [ONNXRUNTIME, TENSORRT], ids=["onnxruntime", "tensorrt"])
def test_a_layer_that_is_left_out_reads_what_it_read_before(tiny: Path, tmp_path: Path, scheme: Scheme) -> None:
    """The first convolution and the shortcut beside it read the same picture."""
    graph = prepared(tiny)
    layers = layers_of(graph)
    first, others = layers[0], layers[1:]
    assert first.input in [layer.input for layer in others]
    quantise(graph, tmp_path / "int8.onnx", calibrate(graph, layers, [batch()]), others, scheme)
    lowered = onnx.load(tmp_path / "int8.onnx")
    assert next(list(node.input[:2]) for node in lowered.graph.node if node.name == first.node) == [
        first.input,
        first.weight,
    ]


def test_weights_are_quantised_channel_by_channel(tiny: Path, tmp_path: Path) -> None:
    graph = prepared(tiny)
    layers = layers_of(graph)
    quantise(graph, tmp_path / "int8.onnx", calibrate(graph, layers, [batch()]), layers, ONNXRUNTIME)
    lowered = onnx.load(tmp_path / "int8.onnx")
    whole = {tensor.name: tensor for tensor in lowered.graph.initializer}
    weights = [tensor for tensor in whole.values() if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4]
    assert len(weights) == len(layers)
    for tensor in weights:
        scale = next(
            n.input[1] for n in lowered.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == tensor.name
        )
        assert list(whole[scale].dims) == [tensor.dims[0]]
        assert np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() <= 64  # two products fit 16 bits anywhere


@pytest.mark.parametrize("scheme", [ONNXRUNTIME, TENSORRT], ids=["onnxruntime", "tensorrt"])
def test_a_layer_made_sensitive_is_left_out_by_what_it_costs(
    sensitive: onnx.ModelProto, tmp_path: Path, scheme: Scheme
) -> None:
    graph, legend = sensitive, Weak.masks.legend
    layers = layers_of(graph)
    batches = [batch(seed=s) for s in SEEDS]
    ranges = calibrate(graph, layers, batches)
    found = measure(graph, layers, ranges, scheme, batches[:2], legend, bound=0.1)
    assert found.left_out[0] == "model.head.weight"  # its input has one huge channel and seven small ones
    assert found.alone["model.head.weight"] > 0.3 > found.alone["model.first.weight"]
    assert found.everything > 0.1 >= found.distance
    kept = [layer for layer in layers if layer.weight not in found.left_out]
    quantise(graph, tmp_path / "int8.onnx", ranges, kept, scheme)
    lowered = onnx.load(tmp_path / "int8.onnx")
    stored = {tensor.name: tensor.data_type for tensor in lowered.graph.initializer}
    assert stored["model.head.weight"] == TensorProto.FLOAT
    assert TensorProto.INT8 in stored.values()


def test_a_network_without_weakness_keeps_all_layers(tiny: Path) -> None:
    graph = prepared(tiny)
    layers = layers_of(graph)
    ranges = calibrate(graph, layers, [batch()])
    found = measure(graph, layers, ranges, TENSORRT, [batch()], Weak.masks.legend, bound=0.5)
    assert found.left_out == []
    assert found.everything == found.distance


def test_where_no_layer_may_be_int8_it_is_said(
    sensitive: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "measure", functools.partial(measure, bound=-1.0))
    onnx.save(sensitive, tmp_path / "model.onnx")
    paths = list_pictures(pictures(tmp_path / "pictures", 2, (32, 32)))
    with pytest.raises(ExportError, match=r"no layer can be int8 within 0\.05 of fp32, model\.head\.weight alone lies"):
        lower._to_int8(tmp_path / "model.onnx", TENSORRT, paths, weak_spread())


def test_layers_that_share_a_weight_are_int8_together() -> None:
    """As a head that runs on every level of a pyramid."""
    rng, node = np.random.default_rng(0), helper.make_node
    weights = {"stem": rng.normal(size=(4, 3, 1, 1)), "shared": rng.normal(size=(4, 4, 1, 1))}
    nodes = [
        node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        node("Transpose", ["floats"], ["pixels"], perm=[0, 3, 1, 2]),
        node("Conv", ["pixels", "stem"], ["a"]),
        node("Conv", ["a", "shared"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("Conv", ["c", "shared"], ["plane"]),
    ]
    graph = helper.make_graph(
        nodes,
        "twice",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", 32, 32, 3])],
        [helper.make_tensor_value_info("plane", TensorProto.FLOAT, ["B", 4, 32, 32])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    name_nodes(model)
    layers = layers_of(model)
    assert [layer.weight for layer in layers] == ["stem", "shared", "shared"]
    ranges = calibrate(model, layers, [batch()])
    found = measure(model, layers, ranges, TENSORRT, [batch()], {"plane": "4 h w"}, bound=-1.0)
    assert sorted(found.left_out) == ["shared", "stem"]
    assert found.distance == 0.0
    both, last = (
        measure(model, some, ranges, TENSORRT, [batch()], {"plane": "4 h w"}) for some in (layers[1:], layers[2:])
    )
    assert found.alone["shared"] == pytest.approx(both.everything, rel=1e-3)
    assert both.everything > 1.1 * last.everything


def test_sums_of_coordinates_are_not_taken_for_features() -> None:
    """Two convolutions with a sum between them, and two that meet in a sum which somebody else reads."""
    weight = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv a"),
        node("Conv", ["x", "w"], ["b"], name="conv b"),
        node("Add", ["a", "b"], ["between"], name="between products"),
        node("Conv", ["between", "w"], ["c"], name="conv c"),
        node("Add", ["c", "b"], ["boxes"], name="of coordinates"),
        node("Exp", ["boxes"], ["y"], name="decoding"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in ("x", "y")]
    graph = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight]))
    assert movers_of(graph, layers_of(graph)) == ["between products"]


@pytest.mark.parametrize(
    "only", [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("MatMul", ["x", "x"], ["y"])]
)
def test_a_graph_without_products_is_refused(only: onnx.NodeProto, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph([only], "none", [value], [answer])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "none.onnx"
    )
    with pytest.raises(ExportError, match="nothing to act on"):
        prepared(tmp_path / "none.onnx")
