"""Where the weights are in a checkpoint, and what else it tells."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from models.weights import CheckpointError, read_checkpoint, read_classes
from tests.models.checkpoints.honest import arrays, few, flat, forget_mmengine, history, legacy, zipped

W = {"neck.weight": torch.ones(2)}


@pytest.mark.parametrize(
    "tree",
    [
        W,
        {"model": W, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "iteration": 90_000},
        {"state_dict": W, "meta": {"epoch": 12}, "optimizer": {}},
        {"model": {"state_dict": W}},
        {"net": W},
        {"model_state_dict": W, "epoch": 3, "loss": 0.5},
        {"module.neck.weight": torch.ones(2)},
        {"model": {"module.module.neck.weight": torch.ones(2)}},
        {"_orig_mod.module.neck.weight": torch.ones(2)},
        W | {"epoch": 3, "neck.version": None},
        {"model": "resnet", **W},
    ],
)
def test_the_weights_are_found(tree: dict[str, Any], tmp_path: Path) -> None:
    for path in (zipped(tree, tmp_path / "new.pth"), legacy(tree, tmp_path / "old.pth")):
        assert list(read_checkpoint(path).tensors) == ["neck.weight"]


def test_a_prefix_that_not_all_have_stays(tmp_path: Path) -> None:
    tree = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(read_checkpoint(zipped(tree, tmp_path / "m.pth")).tensors) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({}, "dictionary of tensors"),
        ([torch.ones(1)], "found a list"),
        (3, "found 3"),
        ({"epoch": 3, "history": [1, 2]}, "2 entries ('epoch': 3, 'history': a list)"),
        ({"state_dict": {}}, "1 entries"),
        (torch.ones(2), "dictionary of tensors"),
    ],
)
def test_a_file_without_weights_is_refused_with_what_it_holds(tree: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(zipped(tree, tmp_path / "m.pth"))
    assert says in str(refused.value)
    assert "save the model's state_dict()" in str(refused.value)


@pytest.mark.filterwarnings("ignore")  # torch calls quantised and sparse tensors unfinished
@pytest.mark.parametrize("kind", ["quantised", "sparse"])
def test_a_weight_that_is_no_plain_tensor_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    plain = torch.eye(3)
    odd = torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8) if kind == "quantised" else plain.to_sparse()
    with pytest.raises(CheckpointError, match=r"1 of its 2 weights.*'head\.q'|torch's storages"):
        read_checkpoint(zipped({"head.q": odd, "head.w": torch.ones(1)}, tmp_path / "m.pth"))


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ("cat", "dog"), "mmdet_version": "2.28.2"},
        {"dataset_meta": {"classes": ("cat", "dog"), "palette": [(0, 0, 0)]}, "mmdet_version": "3.3.0"},
        {"dataset_meta": {"CLASSES": ["cat", "dog"]}, "mmdet_version": "3.0.0rc0"},
    ],
)
def test_mmdetection_tells_its_classes(meta: dict[str, Any], tmp_path: Path) -> None:
    try:
        tree = {"meta": meta, "state_dict": few(), "message_hub": {"log_scalars": OrderedDict(train=history())}}
        paths = [zipped(tree, tmp_path / "new.pth"), legacy(tree, tmp_path / "old.pth")]
    finally:
        forget_mmengine()
    for path in paths:
        found = read_checkpoint(path)
        assert found.classes == ("cat", "dog") == read_classes(path)
        assert found.metadata == {"mmdet_version": meta["mmdet_version"]}
        assert found.foreign == ("builtins.len", "mmengine.logging.history_buffer.HistoryBuffer")
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in few().items())


def test_one_class_that_is_written_as_a_text_is_one_class(tmp_path: Path) -> None:
    assert read_classes(zipped({"meta": {"CLASSES": "cat"}, "state_dict": W}, tmp_path / "m.pth")) == ("cat",)


@pytest.mark.parametrize("meta", [{}, {"CLASSES": None}, {"CLASSES": (1, 2)}, {"dataset_meta": 3}, None])
def test_classes_that_are_not_told_are_none(meta: object, tmp_path: Path) -> None:
    assert read_classes(zipped({"meta": meta, "state_dict": W}, tmp_path / "m.pth")) is None


def test_the_rest_of_a_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    """Of a file whose optimizer's numbers are damaged, the weights are read."""
    path = zipped({"state_dict": W, "optimizer": {"m": torch.full((3,), 7.0)}}, tmp_path / "m.pth")
    data = path.read_bytes()
    numbers = torch.full((3,), 7.0).numpy().tobytes()
    assert data.count(numbers) == 1
    path.write_bytes(data.replace(numbers, b"\0" * 12))
    assert list(read_checkpoint(path).tensors) == ["neck.weight"]


def test_detectron2_writes_arrays_and_an_author(tmp_path: Path) -> None:
    tree = {"model": arrays(few()), "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    found = read_checkpoint(flat(tree, tmp_path / "model_final.pkl"))
    assert found.metadata["__author__"] == "Detectron2 Model Zoo"
    assert list(found.tensors) == list(few())
