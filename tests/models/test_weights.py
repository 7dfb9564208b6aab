"""The door: every container at full size, the commands, and what is told when a file is none."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from export.errors import ExportError
from export.source import Exportable, build, classes_of, load_weights
from models.weights import CheckpointError, main, read_checkpoint
from tests.conftest import ROOT
from tests.models.checkpoints import honest
from tests.shared_data import shared

LISTS = "golden/_keys"
BUILDERS = {
    "torchvision_maskrcnn_resnet50_fpn": "mask_rcnn_r50_fpn",
    "torchvision_maskrcnn_resnet50_fpn_v2": "mask_rcnn_r50_fpn_v2",
    "d2_mask_rcnn_R_50_FPN": "mask_rcnn_r50_fpn_d2",
    "d2_mask_rcnn_R_50_C4": "mask_rcnn_r50_c4_d2",
    "d2_mask_rcnn_R_50_DC5": "mask_rcnn_r50_dc5_d2",
    "d2_mask_rcnn_R_50_FPN_dconv": "mask_rcnn_r50_dcn_fpn_d2",
    "d2_mask_rcnn_X_101_32x8d_FPN": "mask_rcnn_x101_fpn_d2",
    "mmdet_mask_rcnn_r50_fpn": "mask_rcnn_r50_fpn_mmdet",
    "mmdet_mask_rcnn_r50_caffe_fpn": "mask_rcnn_r50_caffe_fpn_mmdet",
    "mmdet_dcnv2_mask_rcnn_r50_fpn": "mask_rcnn_r50_dcn_fpn_mmdet",
}

Writer = Callable[[dict[str, Tensor], Path], Path]


def safetensors(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path)
    return path


# How each code base writes, with the list of a full-size model of its own.
WRITERS: dict[str, tuple[str, Writer]] = {
    "torch zip": ("torchvision_maskrcnn_resnet50_fpn", honest.zipped),
    "torch before 1.6": (
        "mmdet_mask_rcnn_r50_fpn",
        lambda state, path: honest.legacy({"state_dict": state, "meta": {"CLASSES": ("a", "b")}}, path),
    ),
    "pickle": ("d2_mask_rcnn_R_50_FPN", lambda state, path: honest.flat({"model": honest.arrays(state)}, path)),
    "torch tar": ("d2_mask_rcnn_R_50_C4", honest.old_tar),
    "safetensors": ("torchvision_maskrcnn_resnet50_fpn_v2", safetensors),
}


@pytest.mark.proof
@pytest.mark.parametrize("container", WRITERS)
def test_a_full_size_checkpoint_loads_with_every_name_shape_and_number(container: str, tmp_path: Path) -> None:
    listed, write = WRITERS[container]
    wanted = honest.full(shared(f"{LISTS}/{listed}.json"))
    path = write(wanted, tmp_path / "model")
    began = time.perf_counter()
    found = read_checkpoint(path)
    took = time.perf_counter() - began
    path.unlink()  # pytest keeps its folders
    assert found.container == container
    assert found.tensors.keys() == wanted.keys()
    assert all(found.tensors[name].shape == tensor.shape for name, tensor in wanted.items())
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in wanted.items())
    assert took < 20  # a second or two, on a machine with nothing else to do


def test_every_full_size_key_list_is_read_from_a_small_file(tmp_path: Path) -> None:
    for listed in sorted(shared(LISTS).glob("*.json")):
        wanted = honest.shown(listed)
        found = read_checkpoint(honest.zipped({"state_dict": wanted}, tmp_path / "m.pth")).tensors
        assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in wanted.items()}


@pytest.mark.proof
@pytest.mark.parametrize("listed", BUILDERS)
def test_a_full_size_checkpoint_fills_its_model_with_nothing_left_over(listed: str, tmp_path: Path) -> None:
    state = honest.shown(shared(f"{LISTS}/{listed}.json"))
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    model = build(f"models.mask_rcnn:{BUILDERS[listed]}")
    load_weights(model, honest.zipped({"model": prefixed}, tmp_path / "m.pth"))


MEMORY = """
import resource, sys
from pathlib import Path
from models.weights import read_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_checkpoint(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("write", [honest.zipped, honest.legacy, safetensors])
def test_a_file_is_not_held_twice(write: Writer, tmp_path: Path) -> None:
    path = write({f"w{i}": torch.full((5_000_000,), float(i)) for i in range(5)}, tmp_path / "m")  # 100 MB
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    path.unlink()
    assert int(done.stdout) < 130_000  # kB


@pytest.fixture(scope="module")
def honest_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small checkpoint of each container."""
    folder = tmp_path_factory.mktemp("honest")
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1, 2])}
    return {container: write(state, folder / "m").read_bytes() for container, (_, write) in WRITERS.items()}


@pytest.mark.parametrize("container", WRITERS)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_read_or_refused(
    container: str, honest_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(honest_files[container])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged-{os.getpid()}"
    path.write_bytes(damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))])
    with contextlib.suppress(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\0" * 5, "not a safetensors file, a torch file or a pickle"),
        (b"hello, this is not a checkpoint", "begins with the bytes 68 65 6c 6c 6f"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "the download failed"),
        (b"\x1f\x8b\x08\x00", "unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
    ],
)
def test_what_is_no_checkpoint_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    assert says in str(refused.value)
    assert str(path) in str(refused.value)


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="it is no file"):
            read_checkpoint(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")


def test_convert_writes_what_is_read_and_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        tree = {"meta": {"CLASSES": ("cat", "Hündchen")}, "state_dict": honest.few(), "hub": honest.history()}
        path = honest.zipped(tree, tmp_path / "epoch_12.pth")
    finally:
        honest.forget_mmengine()
    out = tmp_path / "weights.safetensors"
    assert main(["convert", str(path), str(out)]) == 0
    said = capsys.readouterr().out
    foreign = "mmengine.logging.history_buffer.HistoryBuffer"
    assert all(word in said for word in ("100 %", "torch zip", "unknown", f"{len(honest.few())}, ", foreign))
    assert all(torch.equal(tensor, load_file(out)[name]) for name, tensor in honest.few().items())
    assert read_checkpoint(out).classes == ("cat", "Hündchen")

    before = out.read_bytes()
    assert main(["convert", str(path), str(out)]) == 1
    assert "--replace" in capsys.readouterr().err
    assert main(["convert", str(path), str(out), "--replace"]) == 0
    assert out.read_bytes() == before
    assert main(["convert", str(out), str(out), "--replace"]) == 0
    assert read_checkpoint(out).classes == ("cat", "Hündchen")


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("none.pth", "out.safetensors", "does not exist"),
        ("m.pth", "out.pth", "should end in .safetensors"),
        ("m.pth", "nowhere/out.safetensors", "no folder"),
    ],
)
def test_convert_refuses_in_one_line_and_writes_nothing(
    source: str, target: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest.zipped(honest.few(), tmp_path / "m.pth")
    assert main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("not converted: ")
    assert says in said
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


def test_show_lists_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = honest.legacy({"model": honest.few(), "iteration": 90_000}, tmp_path / "m.pth")
    assert main(["show", str(path)]) == 0
    said = capsys.readouterr().out
    assert "torch before 1.6" in said
    assert "iteration = 90000" in said
    assert "backbone.conv1.weight" in said
    assert "(4, 3, 7, 7)" in said


def test_a_name_that_would_move_the_cursor_is_written_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    honest.zipped({"evil\x1b[2J": torch.ones(1), "meta": {"author": "\x1b]0;x\x07"}}, tmp_path / "m.pth")
    assert main(["show", str(tmp_path / "m.pth")]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_help_says_why_and_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "convert model_final.pkl weights.safetensors" in said
    assert "torch.load runs it" in said


TINY = "models.mask_rcnn:mask_rcnn_tiny"


def state_of(model: Exportable) -> dict[str, Tensor]:
    return cast(nn.Module, model).state_dict()


def test_our_own_names_load_from_any_container(tmp_path: Path) -> None:
    state = state_of(build(TINY))
    changed = {name: torch.full_like(tensor, 0.5) for name, tensor in state.items()}
    for path in (honest.zipped(changed, tmp_path / "m.pth"), honest.flat(honest.arrays(changed), tmp_path / "m.pkl")):
        model = build(TINY)
        load_weights(model, path)
        assert all(tensor.eq(0.5).all() for tensor in state_of(model).values())


def test_another_number_of_classes_is_told_with_what_to_do(tmp_path: Path) -> None:
    path = honest.zipped(state_of(build(TINY, classes=("a", "b", "c"))), tmp_path / "m.pth")
    with pytest.raises(ExportError, match=r"tells 3 classes apart and the model 2, so give --classes with 3 names"):
        load_weights(build(TINY), path)


def test_another_code_base_is_told(tmp_path: Path) -> None:
    path = honest.zipped(honest.shown(shared(f"{LISTS}/mmdet_mask_rcnn_r50_fpn.json")), tmp_path / "m.pth")
    model = build(TINY)
    model.dialect = "detectron2"  # type: ignore[attr-defined]
    with pytest.raises(ExportError, match=r"should have detectron2's names, found mmdetection ones"):
        load_weights(model, path)


def test_an_option_that_a_builder_has_no_use_for_is_refused() -> None:
    with pytest.raises(ExportError, match=r"unet_tiny has no use for --input-size and --top"):
        build("models.unet:unet_tiny", input_size=(64, 64), top=5)


def test_classes_come_from_the_checkpoint(tmp_path: Path) -> None:
    tree = {"meta": {"CLASSES": ("a", "b", "c")}, "state_dict": honest.few()}
    assert classes_of(honest.zipped(tree, tmp_path / "m.pth")) == ("a", "b", "c")
    with pytest.raises(ExportError, match="does not exist"):
        classes_of(tmp_path / "none.pth")
