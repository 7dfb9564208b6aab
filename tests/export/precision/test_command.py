"""`--precision` from the command line to a bundle that is verified and served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import export.__main__ as command
from export import from_pytorch
from export.precision import accuracy
from export.source import build
from server.cores import usable_cores
from server.engines.choice import Wanted
from server.loading import load
from server.manifest import read_bundle
from tests.export.precision.networks import pictures

TINY = "models.unet:unet_tiny"
DETECTOR = "models.mask_rcnn:mask_rcnn_tiny"


def run(out: Path, weights: Path, *flags: str) -> int:
    return command.main([TINY, "--weights", str(weights), "--out", str(out), "--max-batch", "2", *flags])


@pytest.mark.proof
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bundle_in_fewer_bits_is_proven_verified_and_served(
    precision: str, tmp_path: Path, tiny_weights: Path, tiny_bundle: Path
) -> None:
    out = tmp_path / "bundles" / "tiny" / "1"
    calibrate = str(pictures(tmp_path / "pictures"))
    assert run(out, tiny_weights, "--precision", precision, "--calibrate", calibrate) == 0
    manifest = read_bundle(out).manifest
    assert manifest.precision == precision
    assert manifest.lowered is not None
    record = manifest.lowered["model.onnx"]
    assert record.lowered
    assert record.distance <= max(record.bound, 0.5 * (precision == "int8"))
    assert all(run.alone_error == 0.0 and run.distance is not None for run in manifest.parity.runs)
    engines = ("onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
    assert set(manifest.golden.tolerance) == {f"{engine}/{precision}" for engine in engines}
    weights_mb = [(folder / "model.onnx").stat().st_size for folder in (tiny_bundle, out)]
    assert precision == "int8" or weights_mb[1] < weights_mb[0]
    assert command.main(["verify", str(out), "--weights", str(tiny_weights)]) == 0
    loaded = load(out, Wanted(threads=usable_cores()))  # the golden sample is answered
    assert loaded.engine.name == "onnxruntime-cpu"
    loaded.engine.close()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--precision", "int8"], "--precision int8 needs --calibrate"),
        (["--calibrate", "somewhere"], "fp32 needs none"),
        (["--precision", "int8", "--calibrate", "nowhere"], "should be a folder"),
        (["--check", "a.json"], "--check needs --images"),
        (["--images", "folder"], "--images needs --check"),
        (["--accept-loss"], "--accept-loss is about what --check measures"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_any_work(
    flags: list[str], sentence: str, tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "tiny" / "1", tiny_weights, *flags) == 1
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_fall_in_accuracy_writes_nothing_and_the_flag_writes_it_down(
    tmp_path: Path,
    tiny_weights: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = pictures(tmp_path / "pictures", 1)
    annotated = {
        "images": [{"id": 1, "file_name": "0.png", "height": 48, "width": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}],
        "categories": [{"id": 1, "name": "blob"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(annotated))
    scores = {"fp32": accuracy.Accuracy(0.6, 0.8, 0.7), "int8": accuracy.Accuracy(0.5, 0.7, 0.6)}
    monkeypatch.setattr(accuracy, "measure", lambda served, engine, annotated, title: scores[title])
    graph = tiny_bundle / "model.onnx"  # what writing it again would give
    monkeypatch.setattr(from_pytorch, "write_graph", lambda model, path: shutil.copy(graph, path))
    flags = ["--precision", "int8", "--calibrate", str(folder)]
    flags += ["--check", str(tmp_path / "instances.json"), "--images", str(folder)]
    out = tmp_path / "bundles" / "tiny" / "1"
    assert run(out, tiny_weights, *flags) == 1
    assert "AP falls by 0.1000, from 0.6000 in fp32 to 0.5000 in int8" in capsys.readouterr().err
    assert not out.exists()
    assert run(out, tiny_weights, *flags, "--accept-loss") == 0
    assert "AP 0.6000 in fp32, 0.5000 in int8, on 1 pictures" in capsys.readouterr().out
    record = read_bundle(out).manifest.accuracy
    assert record is not None
    assert record["loss_accepted"]
    assert record["int8"]["ap"] == 0.5


@pytest.mark.proof
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_detector_and_its_twin_in_fewer_bits(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(DETECTOR)
    assert isinstance(model, torch.nn.Module)
    save_file(model.state_dict(), tmp_path / "detector.safetensors")
    out = tmp_path / "bundles" / "detector" / "1"
    flags = ["--precision", precision, "--calibrate", str(pictures(tmp_path / "pictures", 6, (90, 120)))]
    told = [DETECTOR, "--weights", str(tmp_path / "detector.safetensors"), "--out", str(out), "--max-batch", "2"]
    assert command.main([*told, *flags, "--tensorrt"]) == 0
    manifest = read_bundle(out).manifest
    assert manifest.lowered is not None
    assert sorted(manifest.lowered) == ["model.onnx", "model.trt.onnx"]
    assert command.main(["verify", str(out), "--weights", str(tmp_path / "detector.safetensors")]) == 0
