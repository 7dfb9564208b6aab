"""`--tensorrt`: a second graph of the same network, without plugins, held to the same proof."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor, nn

import export.__main__ as command
from export import twin
from export.errors import ExportError
from export.laws import check_plugin_free
from export.parity import inputs_for
from export.source import Exportable
from export.twin import check_settled, pictures_of, rounds_for, twin_of
from models.blocks.cluster_nms import ROUNDS, ClusterNMS
from models.mask_rcnn import MaskRCNN, mask_rcnn_tiny
from models.unet import unet_tiny
from server.bundle_files import sha256_of
from server.manifest import read_bundle
from tests.models.trained import trained

BUILDER = "models.mask_rcnn:mask_rcnn_tiny"


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    return trained(mask_rcnn_tiny())


@pytest.fixture(scope="module")
def weights(model: MaskRCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def bundle(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny" / "1"
    arguments = [BUILDER, "--weights", str(weights), "--out", str(out), "--max-batch", "4", "--tensorrt"]
    assert command.main(arguments) == 0
    return out


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_the_twin_lies_beside_the_graph_with_a_proof_of_its_own(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    assert sorted(manifest.files) == ["golden/sample.npz", "model.onnx", "model.trt.onnx"]
    assert manifest.twin is not None
    assert manifest.twin.nms_rounds == ROUNDS
    assert [run.batch for run in manifest.twin.parity.runs] == [1, 2, 3, 4]
    for run in manifest.twin.parity.runs:
        assert run.rows
        assert run.alone_error == 0.0
        assert 0 < max(run.largest_error.values()) < 0.02  # it has been compared, and is no copy


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_it_asks_and_answers_what_the_graph_does(bundle: Path) -> None:
    native, free = (onnx.load(bundle / name).graph for name in ("model.onnx", "model.trt.onnx"))
    assert [value.SerializeToString() for value in native.input] == [value.SerializeToString() for value in free.input]
    assert [value.name for value in native.output] == [value.name for value in free.output]
    plugins = {"NonMaxSuppression", "RoiAlign"}
    assert plugins <= {node.op_type for node in native.node}
    assert not plugins & {node.op_type for node in free.node}


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_verify_proves_it_again(bundle: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["verify", str(bundle), "--weights", str(weights)]) == 0
    said = capsys.readouterr().out
    assert "checking the laws of the graph for TensorRT" in said
    assert "what cluster-NMS leaves undecided" in said


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_verify_refuses_a_twin_that_needs_plugins_or_answers_otherwise(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path) -> str:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["model.trt.onnx"] = sha256_of(folder / "model.trt.onnx")
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert command.main(["verify", str(folder)]) == 1
        return capsys.readouterr().err

    one, two = (Path(shutil.copytree(bundle, tmp_path / name / "tiny" / "1")) for name in "ab")
    shutil.copy(one / "model.onnx", one / "model.trt.onnx")
    assert "NonMaxSuppression" in refused(one)
    graph = onnx.load(two / "model.trt.onnx")
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("box_predictor.scores.bias"))
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.array([0, 1, 0], np.float32), bias.name)
    )
    onnx.save(graph, two / "model.trt.onnx")
    assert "differs from the golden sample" in refused(two)


def test_too_few_rounds_are_refused_and_more_are_tried(model: MaskRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    exportable = cast(Exportable, model)
    pictures = list(pictures_of(exportable, [3, 4]))
    with pytest.raises(ExportError, match=r"1 rounds of cluster-NMS leave \d+ boxes undecided"):
        check_settled(exportable, 1, pictures)
    monkeypatch.setattr(twin, "ROUNDS", 1)
    rounds = rounds_for(exportable, pictures)
    assert rounds is not None
    assert 1 < rounds <= ROUNDS
    check_settled(exportable, rounds, pictures)
    monkeypatch.setattr(twin, "MOST_ROUNDS", 1)
    with pytest.raises(ExportError, match="undecided"):
        rounds_for(exportable, pictures)


class LeavesOut(nn.Module):
    """Stands in for a network with more candidates than its twin looks at."""

    def __init__(self, input_of: MaskRCNN, nms: ClusterNMS | None = None) -> None:
        super().__init__()
        self.like, self.nms, self.input = input_of, nms, input_of.input

    def plugin_free(self, nms: ClusterNMS) -> LeavesOut:
        return LeavesOut(self.like, nms)

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        assert self.nms is not None
        self.nms.watch.left_out(torch.tensor(3))
        found: dict[str, Tensor] = self.like(images, sizes)
        return found


def test_candidates_that_nobody_looked_at_are_refused(model: MaskRCNN) -> None:
    with pytest.raises(ExportError, match="3 candidates above the score threshold were left out"):
        rounds_for(cast(Exportable, LeavesOut(model)), [inputs_for(model.input, 1, seed=0)])


def test_the_twin_has_the_weights_of_its_model_and_not_a_copy(model: MaskRCNN) -> None:
    free = cast(MaskRCNN, twin_of(cast(Exportable, model), 4))
    for (name, mine), (other, yours) in zip(model.state_dict().items(), free.state_dict().items(), strict=True):
        assert name == other
        assert mine.data_ptr() == yours.data_ptr()


def test_a_model_without_plugins_is_its_own_twin(tiny_bundle: Path) -> None:
    net = cast(Exportable, unet_tiny())
    assert rounds_for(net, []) is None
    assert twin_of(net, None) is net
    check_plugin_free(tiny_bundle / "model.onnx")


def graph_of(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], path: Path) -> Path:
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", 8, 8, 3])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "test", [images], [out], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_what_tensorrt_lacks_is_refused_by_name(tmp_path: Path) -> None:
    cast_ = helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT)

    def refused(*nodes: onnx.NodeProto, rows: int = 5) -> str:
        count = onnx.numpy_helper.from_array(np.array([rows]), "rows")
        with pytest.raises(ExportError) as found:
            check_plugin_free(graph_of(list(nodes), [count], tmp_path / "model.onnx"))
        return str(found.value)

    plugin = helper.make_node("RoiAlign", ["x", "x", "x"], ["out"])
    assert "uses ['RoiAlign'], which a stock TensorRT lacks" in refused(cast_, plugin)
    assert "export without --tensorrt" in refused(cast_, plugin)
    assert "goes into Transpose" in refused(helper.make_node("Transpose", ["images"], ["out"]))
    assert "6000 rows" in refused(cast_, helper.make_node("TopK", ["x", "rows"], ["out", "i"]), rows=6000)
    assert "depends on the picture" in refused(cast_, helper.make_node("TopK", ["x", "i"], ["out", "j"]))
    adds = helper.make_node("ScatterElements", ["x", "i", "x"], ["out"], reduction="add")
    assert "has a reduction" in refused(cast_, adds)
