"""A spared graph computes less and answers the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.laws import axes_of
from export.spare import spare

Tensor = NDArray[Any]
PLANES: list[Any] = ["N", 4, 12, 10]


def graph_of(nodes: list[Any], constants: dict[str, Tensor]) -> ModelProto:
    """From `x`, planes of N pictures, to `y`, float32."""
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, PLANES)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(model).graph.output[0])
    onnx.checker.check_model(model, full_check=True)
    return model


def run(graph: ModelProto, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": x})
    return np.asarray(answer)


def operators(graph: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


def spared(graph: ModelProto) -> tuple[ModelProto, list[str]]:
    """A copy that was spared something, held against the original."""
    after = ModelProto()
    after.CopyFrom(graph)
    lines = spare(after)
    onnx.checker.check_model(after, full_check=True)
    x = np.random.default_rng(0).normal(size=(3, *PLANES[1:])).astype(np.float32)
    wanted = run(graph, x)
    np.testing.assert_allclose(run(after, x), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    return after, lines


def pool(kind: str = "AveragePool", size: tuple[int, int] = (5, 7), **options: Any) -> ModelProto:
    outputs = ["y", "places"] if options.pop("places", False) else ["y"]
    return graph_of([helper.make_node(kind, ["x"], outputs, kernel_shape=size, **options)], {})


@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [2, 3, 2, 3], [1, 0, 4, 6]])
@pytest.mark.parametrize("counted", [0, 1])
def test_a_large_pool_is_a_tall_one_and_a_wide_one(kind: str, pads: list[int], counted: int) -> None:
    options: dict[str, Any] = {"count_include_pad": counted} if kind == "AveragePool" else {}
    after, lines = spared(pool(kind, pads=pads, **options))
    sizes = [list(onnx.helper.get_node_attr_value(node, "kernel_shape")) for node in after.graph.node]
    assert sizes == [[5, 1], [1, 7]]
    assert "1 large pools" in " ".join(lines)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (3, 9)},
        {"strides": [2, 1]},
        {"kind": "MaxPool", "dilations": [2, 1]},
        {"auto_pad": "SAME_UPPER"},
        {"kind": "MaxPool", "places": True},
    ],
)
def test_other_pools_stay_whole(options: dict[str, Any]) -> None:
    after, _ = spared(pool(**options))
    assert sum(operators(after).values()) == 1


KERNEL = np.random.default_rng(1).normal(size=(6, 4, 3, 3)).astype(np.float32)
STD = np.array([58.4, 57.1, 0.5, -2.0], np.float32).reshape(1, 4, 1, 1)


def scaled(kind: str, by: Tensor, inputs: tuple[str, str] = ("x", "by"), **options: Any) -> ModelProto:
    return graph_of(
        [
            helper.make_node(kind, list(inputs), ["scaled"]),
            helper.make_node("Conv", ["scaled", "kernel"], ["y"], pads=[1, 1, 1, 1], **options),
        ],
        {"by": by, "kernel": KERNEL[:, : 4 // options.get("group", 1)]},
    )


@pytest.mark.parametrize(
    ("kind", "by", "inputs"),
    [
        ("Div", STD, ("x", "by")),
        ("Div", STD[0], ("x", "by")),
        ("Div", np.array(255, np.float32), ("x", "by")),
        ("Mul", STD, ("x", "by")),
        ("Mul", np.array([0.5], np.float32), ("by", "x")),
    ],
)
def test_a_scaling_goes_into_the_weights_after_it(kind: str, by: Tensor, inputs: tuple[str, str]) -> None:
    after, lines = spared(scaled(kind, by, inputs))
    assert operators(after) == {"Conv": 1}
    assert len(after.graph.initializer) == 1  # neither the constant nor the old weights are left
    assert "1 scalings" in " ".join(lines)


def test_weights_that_are_listed_among_the_inputs_go_from_there_too() -> None:
    graph = scaled("Div", STD)
    for weight in graph.graph.initializer:
        graph.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    after, _ = spared(graph)
    assert [value.name for value in after.graph.input] == ["x"]


@pytest.mark.parametrize(
    "graph",
    [
        scaled("Div", STD, group=2),
        scaled("Div", np.ones((1, 1, 12, 10), np.float32)),
        scaled("Div", np.arange(10, 50, 10, dtype=np.float32).reshape(4, 1, 1) * np.ones((1, 1, 10), np.float32)),
        scaled("Mul", np.zeros(1, np.float32)),
        scaled("Add", STD),
        graph_of(
            [
                helper.make_node("Div", ["x", "by"], ["scaled"]),
                helper.make_node("Conv", ["scaled", "kernel"], ["seen"], pads=[1, 1, 1, 1]),
                helper.make_node("Concat", ["scaled", "seen"], ["y"], axis=1),
            ],
            {"by": STD, "kernel": KERNEL},
        ),
    ],
    ids=["groups", "a number a pixel", "a number a column", "by zero", "no scaling", "used twice"],
)
def test_other_scalings_stay(graph: ModelProto) -> None:
    after, _ = spared(graph)
    assert operators(after) == operators(graph)


def test_weights_that_others_use_too_stay_as_they_are() -> None:
    graph = graph_of(
        [
            helper.make_node("Div", ["x", "by"], ["scaled"]),
            helper.make_node("Conv", ["scaled", "kernel"], ["one"]),
            helper.make_node("Conv", ["x", "kernel"], ["other"]),
            helper.make_node("Add", ["one", "other"], ["y"]),
        ],
        {"by": STD, "kernel": KERNEL},
    )
    after, _ = spared(graph)
    assert operators(after) == {"Conv": 2, "Add": 1}


def pyramid() -> ModelProto:
    """A sum of which one half was made twice as large."""
    return graph_of(
        [
            helper.make_node("AveragePool", ["x"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Resize", ["half", "", "twice"], ["whole"], mode="nearest"),
            helper.make_node("Add", ["x", "whole"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["y"]),
        ],
        {"twice": np.array([1, 1, 2, 2], np.float32)},
    )


def test_what_grows_with_the_batch_is_its_axis() -> None:
    after, lines = spared(pyramid())
    told = {value.name: axes_of(value) for value in after.graph.value_info}
    assert told == {"half": ["N", 4, 6, 5], "whole": PLANES, "sum": PLANES}
    assert "3 tensors" in " ".join(lines)


def test_nothing_is_said_of_what_only_depends_on_the_batch() -> None:
    graph = graph_of(
        [
            helper.make_node("Concat", ["x", "x"], ["both"], axis=0),
            helper.make_node("ReduceSum", ["both", "first"], ["y"], keepdims=1),
        ],
        {"first": np.array([0])},
    )
    after, lines = spared(graph)
    (both,) = after.graph.value_info
    assert axes_of(both) == ["?", *PLANES[1:]]
    assert lines == []


@pytest.mark.parametrize("listed", [False, True], ids=["weights apart", "weights among the inputs"])
def test_shapes_behind_large_weights_are_known(listed: bool) -> None:
    kernel = np.random.default_rng(2).normal(size=(64, 4, 3, 3)).astype(np.float32)
    graph = graph_of(
        [helper.make_node("Conv", ["x", "kernel"], ["seen"]), helper.make_node("Relu", ["seen"], ["y"])],
        {"kernel": kernel},
    )
    if listed:
        graph.graph.input.append(helper.make_tensor_value_info("kernel", TensorProto.FLOAT, kernel.shape))
    after, _ = spared(graph)
    (seen,) = after.graph.value_info
    assert axes_of(seen) == ["N", 64, 10, 8]


@pytest.mark.parametrize(("first", "second", "name"), [(None, None, "B"), ("N", "M", "N"), (None, "M", "B")])
def test_the_batch_has_one_name_on_all_inputs(first: str | None, second: str | None, name: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "z"], ["sum"]), helper.make_node("Relu", ["sum"], ["y"])],
        "by hand",
        [helper.make_tensor_value_info(of, TensorProto.FLOAT, [axis, 3]) for of, axis in (("x", first), ("z", second))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    spare(model)
    onnx.checker.check_model(model, full_check=True)
    told = [axes_of(value) for value in (*model.graph.input, *model.graph.value_info)]
    assert told == [[name, 3]] * 3


def test_what_the_file_says_of_shapes_and_inference_does_not_know_stays() -> None:
    graph = graph_of(
        [
            helper.make_node("Concat", ["x", "x"], ["both"], axis=0),
            helper.make_node("Relu", ["both"], ["y"]),
        ],
        {},
    )
    graph.graph.value_info.append(helper.make_tensor_value_info("both", TensorProto.FLOAT, ["twice", None, 12, 10]))
    after, lines = spared(graph)
    (both,) = after.graph.value_info
    assert axes_of(both) == ["twice", *PLANES[1:]]
    assert lines == []


def flat(kept: str) -> ModelProto:
    """A target for Reshape, computed: some of the axes, and -1 for the rest."""
    return graph_of(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "kept"], ["some"]),
            helper.make_node("Concat", ["some", "rest"], ["target"], axis=0),
            helper.make_node("Reshape", ["x", "target"], ["y"]),
        ],
        {"kept": np.array([int(axis) for axis in kept]), "rest": np.array([-1])},
    )


@pytest.mark.parametrize(("kept", "target"), [("01", [-1, 4, 120]), ("0", [-1, 480]), ("1", [4, -1])])
def test_a_shape_that_never_changes_is_written_down(kept: str, target: list[int]) -> None:
    after, lines = spared(flat(kept))
    assert operators(after) == {"Reshape": 1}
    (written,) = after.graph.initializer
    assert numpy_helper.to_array(written).tolist() == target
    assert "1 shapes" in " ".join(lines)


def test_a_shape_with_two_unknown_lengths_stays_computed() -> None:
    squares = graph_of(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
            helper.make_node("Concat", ["batch", "batch", "rest"], ["target"], axis=0),
            helper.make_node("Expand", ["x", "all"], ["wide"]),
            helper.make_node("Reshape", ["wide", "rest"], ["line"]),
            helper.make_node("Concat", ["line"] * 3, ["lines"], axis=0),
            helper.make_node("Reshape", ["lines", "target"], ["y"]),
        ],
        {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1]), "all": np.array([1, 1, 1, 1])},
    )
    after, _ = spared(squares)
    assert operators(after)["Reshape"] == 2
    assert operators(after)["Shape"] == 1


def test_a_graph_with_nothing_to_spare_is_left_alone() -> None:
    graph = graph_of([helper.make_node("Relu", ["x"], ["y"])], {})
    _, lines = spared(graph)
    assert lines == []
