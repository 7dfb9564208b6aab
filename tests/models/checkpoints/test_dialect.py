"""Whose names these are: every key list there is, and our own."""

from __future__ import annotations

import pytest
from safetensors import safe_open

from models.checkpoints.dialect import dialect_of
from models.mask_rcnn import mask_rcnn_tiny
from tests.models.checkpoints.honest import keys_of
from tests.shared_data import shared

WHOSE = {
    "torchvision_": "torchvision",
    "d2_": "detectron2",
    "adet_": "detectron2",
    "centermask2_": "detectron2",
    "fb_": "detectron2",
    "mmdet_": "mmdetection",
    "smp_": None,
    "hf_": None,
    "yolact_": None,
}


def test_every_full_size_key_list_is_recognised() -> None:
    lists = sorted(shared("golden/_keys").glob("*.json"))
    assert lists
    wrong = {}
    for path in lists:
        wanted = next(dialect for prefix, dialect in WHOSE.items() if path.stem.startswith(prefix))
        found = dialect_of(keys_of(path))
        if found != wanted:
            wrong[path.stem] = found
    assert wrong == {}


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("mrb_mask_rcnn_r50_fpn", "maskrcnn_benchmark"),
        ("orig_maskscoring_rcnn_r50_fpn", "maskrcnn_benchmark"),
        ("orig_panet_r50_fpn", "detectron_pytorch"),
        ("torchvision_maskrcnn_r50_fpn_v2", "torchvision"),
        ("mmdet_mask_rcnn_r50_fpn", "mmdetection"),
        ("d2_mask_rcnn_R_50_C4", "detectron2"),
        ("d2_mask_rcnn_R_50_DC5", "detectron2"),
    ],
)
def test_state_dicts_of_reference_cases_are_recognised(case: str, wanted: str) -> None:
    with safe_open(shared(f"golden/{case}/a.safetensors"), "pt") as file:
        names = [name.removeprefix("sd/") for name in file.keys() if name.startswith("sd/")]  # noqa: SIM118
    assert dialect_of(names) == wanted


def test_our_own_names_are_ours() -> None:
    assert dialect_of(mask_rcnn_tiny().state_dict()) == "maskserve"


def test_other_names_are_nobodys() -> None:
    assert dialect_of(["encoder.layer1.0.conv1.weight", "decoder.weight"]) is None
    assert dialect_of([]) is None
