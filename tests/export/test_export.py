"""The export command: a bundle that is proven, or nothing at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import export.__main__ as command
from export.bundle import whole_or_nothing
from export.errors import ExportError
from export.laws import OPSET, check_laws
from export.parity import compare, inputs_for, run_model
from export.source import build, load_weights
from server.engines import load_engine
from server.manifest import read_bundle

TINY = "models.unet:unet_tiny"


def export_to(out: Path, weights: Path, *flags: str) -> int:
    return command.main([TINY, "--weights", str(weights), "--out", str(out), *flags])


def nothing_was_written(folder: Path) -> bool:
    return not any(folder.rglob("*.onnx")) and not any(folder.rglob(".writing-*"))


def test_the_bundle_holds_graph_golden_sample_and_a_parity_record(tiny_bundle: Path) -> None:
    manifest = read_bundle(tiny_bundle).manifest
    assert sorted(manifest.files) == ["golden/sample.npz", "model.onnx"]
    assert [run.batch for run in manifest.parity.runs] == [1, 2, 3, 8]
    for run in manifest.parity.runs:
        assert set(run.largest_error) == {"inside", "offsets"}
        assert max(run.largest_error.values()) <= manifest.parity.tolerance
        assert run.alone_error == 0.0
    assert [(o.name, o.dtype) for o in manifest.outputs] == [("inside", "float32"), ("offsets", "float32")]
    assert all(isinstance(output.shape[0], str) for output in manifest.outputs)
    assert manifest.provenance["builder"] == TINY


def test_the_graph_takes_uint8_pictures_in_any_batch(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "model.onnx")
    assert {entry.version for entry in graph.opset_import} == {OPSET}
    images = graph.graph.input[0].type.tensor_type
    assert images.elem_type == onnx.TensorProto.UINT8
    assert images.shape.dim[3].dim_value == 3
    assert graph.graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.INT32


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("size", [(2, 2), (64, 48), (130, 34)])
def test_every_row_equals_its_image_alone_and_pytorch(
    tiny_bundle: Path, tiny_weights: Path, batch: int, size: tuple[int, int]
) -> None:
    model = build(TINY)
    load_weights(model, tiny_weights)
    engine = load_engine(tiny_bundle / "model.onnx", threads=2)
    rng = np.random.default_rng(batch)
    inputs: dict[str, NDArray[Any]] = {
        "images": rng.integers(0, 256, (batch, *size, 3)).astype(np.uint8),
        "sizes": np.array(
            [[rng.integers(1, size[0] + 1), rng.integers(1, size[1] + 1)] for _ in range(batch)], np.int32
        ),
    }
    outputs, reference = engine.run(inputs), run_model(model, inputs)
    for name, wanted in reference.items():
        np.testing.assert_allclose(outputs[name], wanted, atol=1e-4)
    for i in range(batch):
        alone = engine.run({name: tensor[i : i + 1] for name, tensor in inputs.items()})
        for name, tensor in alone.items():
            assert (tensor[0] == outputs[name][i]).all()


def test_what_lies_beyond_the_picture_changes_nothing(tiny_bundle: Path) -> None:
    engine = load_engine(tiny_bundle / "model.onnx", threads=1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    sizes = np.array([[20, 25]], np.int32)
    other = images.copy()
    other[:, 20:] = 255
    other[:, :, 25:] = 7
    first, second = (engine.run({"images": x, "sizes": sizes}) for x in (images, other))
    for name in first:
        assert (first[name] == second[name]).all()


def test_the_bundle_tells_nothing_of_the_machine_that_wrote_it(tiny_bundle: Path, root: Path) -> None:
    for path in (path for path in tiny_bundle.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for secret in (str(root), str(Path.home()), "site-packages", "stack_trace"):
            assert secret.encode() not in content, f"{path.name} holds {secret}"


def test_an_existing_bundle_is_kept_unless_told_otherwise(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny" / "1"
    assert export_to(out, tiny_weights, "--max-batch", "1") == 0
    before = (out / "manifest.json").read_text()
    assert export_to(out, tiny_weights, "--max-batch", "2") == 1
    assert "--replace" in capsys.readouterr().err
    assert (out / "manifest.json").read_text() == before
    assert export_to(out, tiny_weights, "--max-batch", "2", "--replace") == 0
    assert read_bundle(out).manifest.max_batch == 2
    assert [path.name for path in out.parent.iterdir()] == ["1"]


def test_classes_and_threshold_come_from_the_command_line(tiny_weights: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cell\n\n")
    out = tmp_path / "b" / "tiny" / "3"
    assert export_to(out, tiny_weights, "--classes", str(names), "--score-threshold", "0.25", "--max-batch", "1") == 0
    manifest = read_bundle(out).manifest
    assert [(entry.id, entry.name) for entry in manifest.classes] == [(1, "cell")]
    assert manifest.defaults.score_threshold == 0.25
    assert manifest.version == 3


def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 5)
    state = load_file(tiny_weights)
    state["unet.head.bias"] = torch.zeros(7)
    state["extra"] = state.pop("unet.head.weight")
    save_file(state, tmp_path / "other.safetensors")
    out = tmp_path / "bundles" / "tiny" / "1"
    cases: list[tuple[list[str], str]] = [
        (["models.unet", "--weights", str(tiny_weights)], "MODULE:BUILDER"),
        (["models.nonesuch:x", "--weights", str(tiny_weights)], "cannot import"),
        (["models.unet:yolact", "--weights", str(tiny_weights)], "unet_tiny"),
        (["models.unet:UNet", "--weights", str(tiny_weights)], ""),
        ([TINY, "--weights", str(tmp_path / "none.safetensors")], "does not exist"),
        ([TINY, "--weights", str(tmp_path / "broken.safetensors")], "not a safetensors file"),
        ([TINY, "--weights", str(tmp_path / "other.safetensors")], "1 missing (unet.head.weight)"),
        ([TINY, "--weights", str(tiny_weights), "--classes", str(names)], "names 2 classes"),
        ([TINY, "--weights", str(tiny_weights), "--max-batch", "0"], "--max-batch"),
        ([TINY, "--weights", str(tiny_weights), "--score-threshold", "2"], "--score-threshold"),
    ]
    for arguments, says in cases:
        assert command.main([*arguments, "--out", str(out)]) == 1, arguments
        shown = capsys.readouterr().err
        assert shown.startswith("not exported: ")
        assert says in shown
        assert len(shown.strip().splitlines()) == 1
        assert nothing_was_written(tmp_path / "bundles")
    assert command.main([TINY, "--weights", str(tiny_weights), "--out", str(tmp_path / "bundles" / "tiny")]) == 1
    assert "<model>/<version>" in capsys.readouterr().err


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_or_nothing(tmp_path / "m" / "1", replace=False) as folder:
            (folder / "model.onnx").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list((tmp_path / "m").iterdir()) == []


class Wrong:
    """An engine that is a little off, or whose rows depend on their neighbours."""

    name = "wrong"
    slots = 1

    def __init__(self, path: Path, error: float, neighbours: bool) -> None:
        self._engine, self._error, self._neighbours = load_engine(path, 1), error, neighbours

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = self._engine.run(inputs)
        wrong = self._error * (len(inputs["images"]) if self._neighbours else 1)
        return outputs | {"inside": outputs["inside"] + np.float32(wrong)}

    def run_alone(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self.run(inputs)

    def give_back(self) -> None: ...

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize(
    ("error", "neighbours", "says"), [(0.01, False, "differs from PyTorch"), (1e-4, True, "image alone")]
)
def test_a_graph_that_answers_otherwise_is_refused(
    tiny_bundle: Path, tiny_weights: Path, error: float, neighbours: bool, says: str
) -> None:
    model = build(TINY)
    load_weights(model, tiny_weights)
    with pytest.raises(ExportError, match=says):
        compare(model, Wrong(tiny_bundle / "model.onnx", error, neighbours), [1, 2])


@pytest.mark.parametrize(("node", "says"), [("NonZero", "NonZero"), ("SequenceEmpty", "SequenceEmpty")])
def test_a_graph_that_breaks_a_law_is_refused(tiny_bundle: Path, tmp_path: Path, node: str, says: str) -> None:
    graph = onnx.load(tiny_bundle / "model.onnx")
    inputs = ["images"] if node == "NonZero" else []
    if node == "NonZero":
        graph.graph.node.append(onnx.helper.make_node("Cast", ["images"], ["as_float"], to=onnx.TensorProto.FLOAT))
        inputs = ["as_float"]
    graph.graph.node.append(onnx.helper.make_node(node, inputs, ["unused"]))
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=says):
        check_laws(tmp_path / "model.onnx", ["inside", "offsets"])


def test_parity_pictures_differ_in_size_within_a_batch() -> None:
    inputs = inputs_for(build(TINY).input, 3, seed=0)
    assert len({tuple(size) for size in inputs["sizes"].tolist()}) > 1


def test_the_manifest_is_json_that_a_person_can_read(tiny_bundle: Path) -> None:
    text = (tiny_bundle / "manifest.json").read_text()
    assert json.loads(text)["masks"]["kind"] == "center_offsets"
    assert len(text.splitlines()) > 20
