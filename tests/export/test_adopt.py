"""Foreign graphs: adopted and served, or refused with a sentence."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from starlette.testclient import TestClient

import export.__main__ as command
from export.measure import ROUNDING
from server.agreement import in_units, largest_errors
from server.engines import load_engine
from server.engines.choice import Wanted
from server.geometry import Picture
from server.http.app import create_app
from server.loading import load
from server.manifest import Manifest, read_bundle
from server.masks import PrototypeMasks, RoiMasks
from server.preprocess import FixedInput, place
from server.rle import counts_to_mask, string_to_counts
from server.settings import Settings
from tests.export.graphs import ROWS, SIDE, Graph


def adopt(file: Path, out: Path, *flags: str) -> int:
    return command.main(["adopt", str(file), "--layout", "maskserve", "--out", str(out), *flags])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "bundles" / "light" / "1"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return Graph().write(tmp_path / "foreign.onnx")


def manifest_of(bundle: Path) -> Manifest:
    return read_bundle(bundle).manifest


# Adopted


def test_an_adopted_graph_is_a_bundle_that_proves_itself(graph: Path, out: Path) -> None:
    assert adopt(graph, out, "--class-count", "2", "--score-threshold", "0.25") == 0
    manifest = manifest_of(out)
    assert manifest.input == FixedInput(size=(SIDE, SIDE), resize="stretch")
    assert manifest.masks == PrototypeMasks()
    assert [entry.name for entry in manifest.classes] == ["class_0", "class_1"]
    assert manifest.defaults.score_threshold == 0.25
    assert manifest.golden.origin == "onnxruntime-cpu"
    assert manifest.precision == "fp32"
    assert manifest.provenance["adopted"] == "foreign.onnx"
    assert [run.batch for run in manifest.parity.runs] == [1, 2, 3, 8]
    assert {run.alone_error for run in manifest.parity.runs} == {0.0}
    assert set(manifest.parity.runs[0].largest_error) == set(PrototypeMasks.legend)
    shapes = {output.name: output.shape for output in manifest.outputs}
    assert shapes["prototypes"] == ["B", 2, 8, 8]
    load(out, Wanted(threads=1)).engine.close()


def test_an_adopted_graph_is_spared_work_and_says_so(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Graph()
    (grey,) = (node for node in made.nodes if node.op_type == "Sub")
    grey.input[0] = "smooth"
    smooth = helper.make_node("AveragePool", ["light"], ["smooth"], kernel_shape=[5, 5], pads=[2, 2, 2, 2])
    made.nodes.insert(made.nodes.index(grey), smooth)
    file = made.write(tmp_path / "foreign.onnx")
    assert adopt(file, out, "--class-count", "2") == 0
    pools = [node for node in onnx.load(out / "model.onnx").graph.node if node.op_type == "AveragePool"]
    assert len(pools) == 3
    lines = manifest_of(out).provenance["spared"]
    assert "1 large pools, now a tall and a wide one each" in lines
    told = capsys.readouterr().out
    assert all(f"spared: {line}" in told for line in lines)
    inputs = {"images": np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)}
    wanted, found = (load_engine(path, 1).run(inputs) for path in (file, out / "model.onnx"))
    assert in_units(largest_errors(found, wanted, PrototypeMasks.legend))[1] <= ROUNDING


def test_a_graph_that_would_answer_otherwise_stays_as_it_is(
    graph: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(graph: onnx.ModelProto) -> list[str]:
        for weight in graph.graph.initializer:
            if weight.name == "grey":
                weight.CopyFrom(onnx.numpy_helper.from_array(np.array(127, np.float32), "grey"))
        return ["everything"]

    monkeypatch.setattr("export.adopt.spare", spoil)
    assert adopt(graph, out, "--class-count", "2") == 0
    assert (out / "model.onnx").read_bytes() == graph.read_bytes()
    assert "spared: nothing" in capsys.readouterr().out


def test_a_graph_that_no_longer_runs_stays_as_it_is(graph: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(graph: onnx.ModelProto) -> list[str]:
        del graph.graph.node[0]
        return ["everything"]

    monkeypatch.setattr("export.adopt.spare", spoil)
    assert adopt(graph, out, "--class-count", "2") == 0
    assert (out / "model.onnx").read_bytes() == graph.read_bytes()


@pytest.mark.parametrize(("resize", "size"), [("stretch", (60, 80)), ("letterbox", (60, 80)), ("stretch", (20, 16))])
def test_an_adopted_graph_is_served_with_the_right_masks(
    graph: Path, out: Path, resize: str, size: tuple[int, int]
) -> None:
    assert adopt(graph, out, "--class-count", "2", "--resize", resize) == 0
    height, width = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2] = 255  # bright above, dark below
    payload = io.BytesIO()
    Image.fromarray(picture).save(payload, "PNG")
    with TestClient(create_app(Settings(bundles=out.parent.parent, threads=1))) as client:
        until = time.monotonic() + 20
        while client.get("/readyz").status_code != 200 and time.monotonic() < until:
            time.sleep(0.01)
        answer = client.post("/v1/segment", content=payload.getvalue())
    assert answer.status_code == 200, answer.text
    bright, dark = answer.json()["instances"]
    assert [bright["category"], dark["category"]] == ["class_1", "class_0"]
    masks = [
        counts_to_mask(string_to_counts(each["segmentation"]["counts"]), (height, width)) for each in (bright, dark)
    ]
    above, left = np.arange(height)[:, None] < height // 2, np.arange(width) < width // 2
    wanted = [above & left, ~above & ~left]
    for found, expected in zip(masks, wanted, strict=True):
        assert (found & expected).sum() / (found | expected).sum() > 0.85  # cells are coarse


def test_classes_come_from_a_file(graph: Path, out: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("lamp\nshadow\n")
    assert adopt(graph, out, "--classes", str(names)) == 0
    assert [(entry.id, entry.name) for entry in manifest_of(out).classes] == [(1, "lamp"), (2, "shadow")]


def test_a_guessed_number_of_classes_is_said_aloud(graph: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adopt(graph, out) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert "80" in warning
    assert "--class-count" in warning
    assert len(manifest_of(out).classes) == 80


def test_the_rule_for_masks_comes_from_the_command_line(graph: Path, out: Path) -> None:
    rule = ["--mask-rule", "cells=corner", "--mask-rule", "padding=1", "--mask-rule", "interpolate=logits"]
    assert adopt(graph, out, "--class-count", "2", *rule) == 0
    assert manifest_of(out).masks == PrototypeMasks(cells="corner", padding=1, interpolate="logits")


@pytest.mark.parametrize("opset", [18, 19, 21])
def test_other_opsets_are_taken_as_they_are(opset: int, tmp_path: Path, out: Path) -> None:
    graph = Graph()
    graph.opset = opset
    assert adopt(graph.write(tmp_path / "m.onnx"), out, "--class-count", "2") == 0


def test_a_graph_may_ask_for_the_true_sizes(tmp_path: Path, out: Path) -> None:
    graph = Graph()
    graph.inputs["sizes"] = (TensorProto.INT32, ["B", 2])
    graph.node("Cast", ["sizes"], "float_sizes", to=TensorProto.FLOAT)
    graph.node("Unsqueeze", ["float_sizes", graph.constant("two", np.array([2, 3]))], "square")  # (B, 2, 1, 1)
    graph.node("Mul", ["square", graph.constant("nothing", np.array(0, np.float32))], "zeros")
    graph.instead("prototypes", "Add", ["old_prototypes", "zeros"])
    assert adopt(graph.write(tmp_path / "m.onnx"), out, "--class-count", "2", "--resize", "letterbox") == 0
    with np.load(out / "golden" / "sample.npz") as golden:
        assert golden["sizes"].tolist() == [[24, 32]]
        assert not golden["images"][0, 24:].any()
    load(out, Wanted(threads=1)).engine.close()


def test_pixel_planes_are_adopted_too_and_have_one_class(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = Graph()
    del graph.nodes[1:], graph.constants
    graph.constants = {}
    graph.node("ReduceMax", ["pixels", graph.constant("colour", np.array([3]))], "inside", keepdims=0)
    graph.node("Unsqueeze", ["inside", graph.constant("one", np.array([1]))], "plane")
    graph.node("Concat", ["plane", "plane"], "offsets", axis=1)
    graph.outputs = {
        "inside": (TensorProto.FLOAT, ["B", SIDE, SIDE]),
        "offsets": (TensorProto.FLOAT, ["B", 2, SIDE, SIDE]),
    }
    assert adopt(graph.write(tmp_path / "m.onnx"), out) == 0
    assert capsys.readouterr().err == ""
    assert manifest_of(out).masks.kind == "center_offsets"
    assert [entry.name for entry in manifest_of(out).classes] == ["class_0"]


def squares(graph: Graph) -> None:
    """A square of logits for every row in place of planes and coefficients: the picture at a quarter of its size."""
    graph.node("Concat", ["logits"] * ROWS, "mask_logits", axis=1)
    for name in ("coefficients", "prototypes"):
        del graph.outputs[name]
    graph.nodes = [node for node in graph.nodes if not {"coefficients", "prototypes"} & set(node.output)]
    graph.outputs["mask_logits"] = (TensorProto.FLOAT, ["B", ROWS, 8, 8])


def test_squares_over_boxes_are_told_by_the_names_of_the_outputs(tmp_path: Path, out: Path) -> None:
    graph = Graph()
    squares(graph)
    file = graph.write(tmp_path / "m.onnx")
    assert adopt(file, out, "--class-count", "2", "--mask-rule", "paste=torchvision") == 0
    assert manifest_of(out).masks == RoiMasks(paste="torchvision")
    shapes = {output.name: output.shape for output in manifest_of(out).outputs}
    assert shapes["mask_logits"] == ["B", 3, 8, 8]
    engine = load(out, Wanted(threads=1)).engine
    try:
        images = np.zeros((1, SIDE, SIDE, 3), np.uint8)
        images[:, : SIDE // 2] = 255  # bright above, so the upper half of every box
        outputs = {name: tensor[0] for name, tensor in engine.run({"images": images}).items()}
    finally:
        engine.close()
    frame = manifest_of(out).input.frame((64, 64))
    left, right = manifest_of(out).masks.decode(outputs, frame, 0.5)
    for segment, x in ((left, 0), (right, 32)):
        assert list(segment.box) == [x, 0, x + 32, 64]
        found = np.zeros((64, 64), np.bool_)
        patch = segment.patch
        found[patch.y : patch.y + patch.bits.shape[0], patch.x : patch.x + patch.bits.shape[1]] = patch.bits
        wanted = np.zeros((64, 64), np.bool_)
        wanted[:32, x : x + 32] = True
        assert (found & wanted).sum() / (found | wanted).sum() > 0.8  # cells are coarse


# Refused


def float_input(graph: Graph) -> None:
    graph.inputs["images"] = (TensorProto.FLOAT, ["B", SIDE, SIDE, 3])


def channels_first(graph: Graph) -> None:
    graph.inputs["images"] = (TensorProto.UINT8, ["B", 3, SIDE, SIDE])
    graph.nodes[1].attribute[0].ints[:] = [0, 1, 2, 3]


def fixed_batch(graph: Graph) -> None:
    graph.inputs["images"] = (TensorProto.UINT8, [1, SIDE, SIDE, 3])


def free_height(graph: Graph) -> None:
    graph.inputs["images"] = (TensorProto.UINT8, ["B", "height", SIDE, 3])
    graph.outputs["prototypes"] = (TensorProto.FLOAT, ["B", 2, "h", 8])


def other_input(graph: Graph) -> None:
    graph.inputs = {"x": graph.inputs["images"]}
    for node in graph.nodes:
        node.input[:] = ["x" if name == "images" else name for name in node.input]


def no_labels(graph: Graph) -> None:
    del graph.outputs["labels"]


def one_output_more(graph: Graph) -> None:
    graph.outputs["light"] = (TensorProto.FLOAT, ["B", 1, 8, 8])


def long_labels(graph: Graph) -> None:
    graph.instead("labels", "Cast", ["old_labels"], to=TensorProto.INT64)
    graph.outputs["labels"] = (TensorProto.INT64, ["B", ROWS])


def oblong_squares(graph: Graph) -> None:
    squares(graph)
    rows = graph.constant("upper", np.array([0, 1, 2, 3]))
    graph.instead("mask_logits", "Gather", ["old_mask_logits", rows], axis=2)
    graph.outputs["mask_logits"] = (TensorProto.FLOAT, ["B", ROWS, 4, 8])


def squares_of_other_rows(graph: Graph) -> None:
    squares(graph)
    graph.instead("mask_logits", "Concat", ["old_mask_logits", "logits"], axis=1)
    graph.outputs["mask_logits"] = (TensorProto.FLOAT, ["B", ROWS + 1, 8, 8])


def nan_planes(graph: Graph) -> None:
    graph.instead("prototypes", "Sqrt", ["old_prototypes"])


def rows_that_know_their_neighbours(graph: Graph) -> None:
    graph.node("ReduceMax", ["old_prototypes"], "brightest", keepdims=0)
    graph.instead("prototypes", "Sub", ["old_prototypes", "brightest"])
    graph.nodes[-2], graph.nodes[-1] = graph.nodes[-1], graph.nodes[-2]
    graph.nodes.sort(key=lambda node: node.op_type == "Sub" and node.output[0] == "prototypes")


def fails_at_two(graph: Graph) -> None:
    shape = graph.constant("alone", np.array([1, 2, 8, 8]))
    graph.instead("prototypes", "Reshape", ["old_prototypes", shape])


def no_axis_for_planes(graph: Graph) -> None:
    graph.instead("scores", "Unsqueeze", ["old_scores", graph.constant("last", np.array([2]))])
    graph.outputs["scores"] = (TensorProto.FLOAT, ["B", ROWS, 1])


def rising_scores(graph: Graph) -> None:
    graph.constants["scores_rows"] = np.array([0.1, 0.8, 0.9], np.float32)


def fractions(graph: Graph) -> None:
    graph.constants["boxes_rows"] = graph.constants["boxes_rows"] / SIDE


def background_below_zero(graph: Graph) -> None:
    graph.constants["labels_rows"] = np.array([-1, 0, 0], np.int32)


def many_labels(graph: Graph) -> None:
    graph.constants["labels_rows"] = np.array([90, 0, 0], np.int32)


def data_dependent(graph: Graph) -> None:
    graph.node("NonZero", ["pixels"], "bright")


def foreign_operator(graph: Graph) -> None:
    graph.node("Gelu", ["pixels"], "activated", domain="com.microsoft")


def old_opset(graph: Graph) -> None:
    graph.opset = 13


def as_it_is(graph: Graph) -> None:
    pass


REFUSED: list[tuple[Callable[[Graph], None], list[str], str]] = [
    (float_input, [], "input 'images' should be uint8 (B, h, w, 3), got float"),
    (channels_first, [], "should be (B, h, w, 3)"),
    (fixed_batch, [], "the batch axis of 'images' is fixed at 1"),
    (free_height, [], "fixed numbers"),
    (other_input, [], "inputs should be 'images'"),
    (no_labels, [], "lacks ['labels']"),
    (one_output_more, [], "no use for ['light']"),
    (long_labels, [], "output 'labels' should be int32, it is int64"),
    (nan_planes, [], "output 'prototypes' has NaN or infinity"),
    (rows_that_know_their_neighbours, [], "a row differs from its image alone: 'prototypes' by"),
    (fails_at_two, [], "the graph fails at batch 2"),
    (no_axis_for_planes, [], "output 'scores' should be (N)"),
    (oblong_squares, [], "output 'mask_logits' should be (N m m)"),
    (squares_of_other_rows, [], "output 'mask_logits' should be (N m m)"),
    (squares, ["--mask-rule", "paste=mmdet"], "paste"),
    (squares, ["--mask-rule", "crop=none"], "'roi' has paste, threshold"),
    (rising_scores, [], "scores should fall"),
    (fractions, [], "boxes look like fractions"),
    (background_below_zero, [], "labels should count from 0"),
    (many_labels, [], "label 90, and 2 classes end at 1"),
    (data_dependent, [], "NonZero"),
    (foreign_operator, [], "com.microsoft.Gelu"),
    (old_opset, [], "opset 17 to 21"),
    (as_it_is, ["--class-count", "0"], "--class-count"),
    (as_it_is, ["--max-batch", "0"], "--max-batch"),
    (as_it_is, ["--score-threshold", "7"], "--score-threshold"),
    (as_it_is, ["--mask-rule", "crop=circle"], "crop"),
    (as_it_is, ["--mask-rule", "shape=round"], "has threshold, crop"),
]


@pytest.mark.parametrize(("change", "flags", "says"), REFUSED, ids=[f"{c[0].__name__} {c[2]}" for c in REFUSED])
def test_what_breaks_the_contract_is_refused_in_one_line_and_nothing_is_written(
    change: Callable[[Graph], None],
    flags: list[str],
    says: str,
    tmp_path: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    graph = Graph()
    change(graph)
    file = graph.write(tmp_path / "m.onnx")
    assert adopt(file, out, *(flags or ["--class-count", "2"])) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("not adopted: ")
    assert says in shown
    assert len(shown.strip().splitlines()) == 1
    assert not any((tmp_path / "bundles").rglob("*.onnx"))


def test_rows_that_differ_in_a_batch_can_be_served_one_at_a_time(tmp_path: Path, out: Path) -> None:
    graph = Graph()
    rows_that_know_their_neighbours(graph)
    assert adopt(graph.write(tmp_path / "m.onnx"), out, "--class-count", "2", "--max-batch", "1") == 0
    assert manifest_of(out).max_batch == 1


def test_other_files_are_refused(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\xff\x00 not a graph")
    (tmp_path / "empty.onnx").write_bytes(b"")
    outside = Graph()
    outside.constant("scores_rows", np.array([0.9, 0.8, 0.0], np.float32))
    model = onnx.load(outside.write(tmp_path / "inside.onnx"))
    onnx.save(model, tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    for name, says in (
        ("noise", "is no ONNX file"),
        ("empty", "opset 17 to 21"),
        ("none", "does not exist"),
        ("outside", "weights in other files"),
    ):
        assert adopt(tmp_path / f"{name}.onnx", out) == 1
        assert says in capsys.readouterr().err


def test_an_existing_bundle_is_kept_unless_told_otherwise(graph: Path, out: Path) -> None:
    assert adopt(graph, out, "--class-count", "2") == 0
    before = (out / "manifest.json").read_text()
    assert adopt(graph, out, "--class-count", "3") == 1
    assert (out / "manifest.json").read_text() == before
    assert adopt(graph, out, "--class-count", "3", "--replace") == 0
    assert len(manifest_of(out).classes) == 3


@pytest.mark.parametrize(
    ("words", "teaches"),
    [(["--help"], "adopt"), (["adopt", "--help"], "coefficients (N K)"), (["adopt", "--help"], "mask_logits (N m m)")],
)
def test_help_teaches_both_commands(words: list[str], teaches: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 0
    assert teaches in capsys.readouterr().out


# The input of one size


@pytest.mark.parametrize(
    ("size", "resize", "content"),
    [
        ((480, 640), "stretch", (256, 320)),
        ((480, 640), "letterbox", (240, 320)),
        ((100, 50), "letterbox", (256, 128)),
        ((1, 3000), "letterbox", (1, 320)),
    ],
)
def test_pictures_fill_the_input_or_keep_their_ratio(size: Any, resize: Any, content: tuple[int, int]) -> None:
    frame = FixedInput(size=(256, 320), resize=resize).frame(size)
    assert (frame.size, frame.input_size, frame.content) == (size, (256, 320), content)


@pytest.mark.parametrize(
    ("shrink", "how"), [("area", cv2.INTER_AREA), ("linear", cv2.INTER_LINEAR)], ids=["area", "linear"]
)
def test_pictures_shrink_as_in_training(graph: Path, out: Path, shrink: str, how: int) -> None:
    assert adopt(graph, out, "--class-count", "2", "--shrink", shrink) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    placed = place(Picture(pixels, (0, 0, 64, 48)), manifest_of(out).input.frame((48, 64)))
    np.testing.assert_array_equal(placed, cv2.resize(pixels, (SIDE, SIDE), interpolation=how))


def test_a_manifest_says_which_kind_of_input_it_has(graph: Path, out: Path) -> None:
    assert adopt(graph, out, "--class-count", "2") == 0
    raw = json.loads((out / "manifest.json").read_text())
    assert raw["input"] == {"size": [32, 32], "resize": "stretch", "shrink": "area", "reduced_decoding": True}
    for wrong in ({"size": [0, 32]}, {"multiple": 16}, {"resize": "squeeze"}):
        with pytest.raises(ValueError, match="input"):
            Manifest.model_validate(raw | {"input": raw["input"] | wrong})
