"""Every published model takes every key of its checkpoints, and each code base's rules are where they were found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from types import ModuleType

import pytest
import torch

from export.conform.cases import read_systems
from export.conform.conventions import pool
from models import mask_rcnn
from models.blocks.norm import BatchNorm
from models.blocks.pyramid_pool import PyramidPool
from models.dialects import coco, detectron2, maskrcnn_benchmark, mmdetection, published, torchvision
from models.mask_rcnn import MaskRCNN
from tests.shared_data import shared

PUBLISHED: list[tuple[str, str, ModuleType]] = [
    ("torchvision_maskrcnn_resnet50_fpn", "mask_rcnn_r50_fpn", torchvision),
    ("torchvision_maskrcnn_resnet50_fpn", "mask_rcnn_r50_fpn_coco_v1", torchvision),
    ("torchvision_maskrcnn_resnet50_fpn_v2", "mask_rcnn_r50_fpn_v2", torchvision),
    ("d2_mask_rcnn_R_50_FPN", "mask_rcnn_r50_fpn_d2", detectron2),
    ("d2_mask_rcnn_R_50_C4", "mask_rcnn_r50_c4_d2", detectron2),
    ("d2_mask_rcnn_R_50_DC5", "mask_rcnn_r50_dc5_d2", detectron2),
    ("d2_mask_rcnn_R_50_FPN_dconv", "mask_rcnn_r50_dcn_fpn_d2", detectron2),
    ("d2_mask_rcnn_X_101_32x8d_FPN", "mask_rcnn_x101_fpn_d2", detectron2),
    ("mmdet_mask_rcnn_r50_fpn", "mask_rcnn_r50_fpn_mmdet", mmdetection),
    ("mmdet_mask_rcnn_r50_caffe_fpn", "mask_rcnn_r50_caffe_fpn_mmdet", mmdetection),
    ("mmdet_dcnv2_mask_rcnn_r50_fpn", "mask_rcnn_r50_dcn_fpn_mmdet", mmdetection),
]


def renamed(keys: Iterable[str], dialect: ModuleType) -> dict[str, str]:
    """Ours to theirs; what nobody needs is left out.

    Raises:
        AssertionError: a key that no rule knows, or two that become one.
    """
    found: dict[str, str] = {}
    for key in keys:
        if any(re.fullmatch(pattern, key) for pattern, _ in dialect.IGNORED):
            continue
        hits = ((match, template) for pattern, template in dialect.NAMES if (match := re.fullmatch(pattern, key)))
        match, template = next(hits, (None, ""))
        assert match, f"no rule for {key}"
        name = match.expand(template)
        assert name not in found, f"{key} and {found[name]} both become {name}"
        found[name] = key
    return found


def shapes(model: MaskRCNN) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("keys", "builder", "dialect"), PUBLISHED, ids=[builder for _, builder, _ in PUBLISHED])
def test_a_full_size_checkpoint_fits_to_the_last_key(keys: str, builder: str, dialect: ModuleType) -> None:
    listed: dict[str, tuple[str, list[int]]] = json.loads(shared(f"golden/_keys/{keys}.json").read_text())["keys"]
    with torch.device("meta"):
        model = getattr(mask_rcnn, builder)()
    theirs = renamed(listed, dialect)
    assert {name: listed[key][1] for name, key in theirs.items()} == shapes(model)


def test_every_code_base_may_leave_out_or_add_what_follows_from_the_configuration() -> None:
    extra = {
        torchvision: ["backbone.body.layer1.0.bn1.num_batches_tracked"],
        detectron2: ["pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.4"],
        mmdetection: ["backbone.layer4.2.bn3.num_batches_tracked"],
        maskrcnn_benchmark: ["rpn.anchor_generator.cell_anchors.0"],
    }
    for dialect, keys in extra.items():
        assert renamed(keys, dialect) == {}
        assert all(reason for _, reason in dialect.IGNORED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("backbone.fpn.inner_blocks.2.weight", "backbone.fpn.inner_blocks.2.0.weight"),
        ("backbone.fpn.layer_blocks.0.bias", "backbone.fpn.layer_blocks.0.0.bias"),
        ("rpn.head.conv.weight", "rpn.head.conv.0.0.weight"),
        ("roi_heads.mask_head.mask_fcn3.bias", "roi_heads.mask_head.2.0.bias"),
    ],
)
def test_torchvision_s_published_files_have_older_names(old: str, new: str) -> None:
    assert list(renamed([old], torchvision)) == list(renamed([new], torchvision))


def test_anchors_are_those_that_maskrcnn_benchmark_saved() -> None:
    for case in (group.cases[0] for group in _groups("mrb_mask_rcnn_r50_fpn")):
        model = case.meta["config_yaml"]
        assert "ANCHOR_SIZES:\n  - 16\n  - 24" in model
        state = case.state()
        config = published.maskrcnn_benchmark(6)
        config["MODEL"]["RPN"]["ANCHOR_SIZES"] = [16, 24, 48, 96, 160]
        cells = maskrcnn_benchmark.spec(config).rpn.anchors.cells
        for level, found in enumerate(cells):
            wanted = state[f"rpn.anchor_generator.cell_anchors.{level}"]
            torch.testing.assert_close(torch.tensor(found), wanted, rtol=0, atol=1e-5)


def test_levels_and_pooled_features_are_those_of_every_code_base() -> None:
    (group,) = _groups("conventions_roi_pool")
    rows = list(pool(group.cases[0]))
    assert len(rows) == 9 + 6  # levels are the twin's too
    assert {row.verdict for row in rows} == {"pass"}


def _groups(system: str) -> Sequence:
    return read_systems(shared("golden"))[system]


def test_coco_has_eighty_names_and_torchvision_ninety_labels() -> None:
    assert len(set(coco.NAMES)) == 80
    sparse = coco.sparse_names()
    assert len(set(sparse)) == 90
    assert (sparse[0], sparse[12], sparse[89]) == ("person", "stop sign", "toothbrush")  # COCO's ids less one
    assert sparse[11] == "unused_12"


def test_a_setting_that_would_be_left_out_is_refused() -> None:
    config = published.mmdetection(3)
    config["rpn_head"]["anchor_generator"]["center_offset"] = 0.5
    with pytest.raises(ValueError, match="center_offset"):
        mmdetection.spec(config)
    config = published.mmdetection(3)
    config["roi_head"]["bbox_head"]["bbox_coder"]["add_ctr_clamp"] = True
    with pytest.raises(ValueError, match="add_ctr_clamp"):
        mmdetection.spec(config)
    detectron = published.detectron2_fpn(3)
    detectron["MODEL"]["RESNETS"]["NORM"] = "LN"
    with pytest.raises(ValueError, match="LN"):
        detectron2.spec(detectron)


def test_numbers_that_no_shape_shows() -> None:
    """Each of these was somebody's wrong answer."""
    tv, d2 = torchvision.spec(published.torchvision(3)), detectron2.spec(published.detectron2_fpn(3))
    mm = mmdetection.spec(published.mmdetection(3))
    caffe = mmdetection.spec(published.mmdetection_caffe(3))
    mrb = maskrcnn_benchmark.spec(published.maskrcnn_benchmark(3))
    assert [spec.backbone.stride_in_1x1 for spec in (tv, d2, mm, caffe, mrb)] == [False, True, False, True, True]
    assert [spec.colours.order for spec in (tv, d2, mm, caffe, mrb)] == [
        (0, 1, 2),
        (2, 1, 0),
        (0, 1, 2),
        *[(2, 1, 0)] * 2,
    ]
    pools = [spec.pool for spec in (tv, d2, mm, caffe, mrb) if isinstance(spec.pool, PyramidPool)]
    assert [pool.aligned for pool in pools] == [False, True, True, True, False]
    assert [pool.sampling for pool in pools] == [2, 0, 0, 0, 2]
    assert [spec.detection.first_class for spec in (tv, d2, mm, caffe, mrb)] == [1, 0, 0, 0, 1]
    assert [spec.rpn.coder.extent for spec in (tv, d2, mm, caffe, mrb)] == [0, 0, 0, 0, 1]
    assert d2.colours.mean == caffe.colours.mean == (123.675, 116.28, 103.53)  # told in RGB
    coco_v1 = torchvision.spec(published.torchvision_coco_v1(3))
    assert [spec.backbone.norm for spec in (coco_v1, tv, d2, mm, mrb)] == [
        BatchNorm(eps) for eps in (0.0, 1e-5, 1e-5, 1e-5, 0.0)
    ]
    x101 = detectron2.spec(published.detectron2_x101(3))
    assert not x101.backbone.stride_in_1x1
    assert x101.colours.std == (58.395, 57.12, 57.375)
