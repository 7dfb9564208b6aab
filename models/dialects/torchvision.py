"""torchvision's detection models: `maskrcnn_resnet50_fpn` and `maskrcnn_resnet50_fpn_v2`.

https://github.com/pytorch/vision/blob/main/torchvision/models/detection/mask_rcnn.py. The background is class 0 and has
offsets and a mask plane of its own; anchors are rounded; pictures are RGB and resized as floats, so a served picture,
resized as bytes, differs from theirs by up to half a grey level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.blocks.anchors import by_root, fitted_stride, rounded
from models.blocks.boxes import BoxCoder
from models.blocks.colours import ColourSpec
from models.blocks.detections import DetectionSpec
from models.blocks.mask_rcnn_spec import BoxHeadSpec, MaskHeadSpec, MaskRCNNSpec, NeckSpec
from models.blocks.norm import BatchNorm
from models.blocks.pyramid_pool import LevelRule, PyramidPool
from models.blocks.resnet import ResNetSpec
from models.blocks.rpn import AnchorSpec, RPNSpec
from models.dialects.names import resnet_names
from server.preprocess import ShortestEdgeInput

INPUT = ShortestEdgeInput(
    short_side=800, long_side=1333, multiple=32, rounding="floor", resample="linear", reduced_decoding=False
)
POOL = PyramidPool(strides=(4, 8, 16, 32), level=LevelRule(outside=1e-6), sampling=2, aligned=False)
STRIDES = (4, 8, 16, 32, 64)


def spec(config: Mapping[str, Any]) -> MaskRCNNSpec:
    """`maskrcnn_resnet50_fpn`.

    Args:
        config: as in `published.torchvision`; `num_classes` counts the background, `norm_eps` is 1e-5 if not told.
    """
    base, channels, columns = config["base_width"], config["fpn_ch"], config["num_classes"]
    norm = BatchNorm(eps=config.get("norm_eps", 1e-5))
    return MaskRCNNSpec(
        dialect="torchvision",
        colours=ColourSpec(),
        multiple=32,
        backbone=ResNetSpec(
            stem_channels=base, middle=base, channels=4 * base, blocks=tuple(config["layers"]), norm=norm
        ),
        neck=NeckSpec(channels),
        rpn=RPNSpec(
            anchors=AnchorSpec(
                cells=tuple(rounded(by_root([size], config["aspect"])) for size in config["anchor_sizes"]),
                strides=STRIDES,
                stride=fitted_stride,
            ),
            convs=1,
            coder=BoxCoder(),
            before_nms=config["rpn_pre_nms"],
            after_nms=config["rpn_post_nms"],
            proposals=config["rpn_post_nms"],
            iou=config["rpn_nms"],
            shortest_side=1e-3,
        ),
        pool=POOL,
        mask_pool=POOL,
        shared_stage=None,
        box_head=BoxHeadSpec(
            size=7,
            convs=(),
            layers=(config["box_head_hidden"],) * 2,
            norm=None,
            score_columns=columns,
            box_sets=columns,
        ),
        detection=DetectionSpec(
            classes=columns - 1,
            first_class=1,
            sets=columns - 1,
            coder=BoxCoder(weights=(10.0, 10.0, 5.0, 5.0)),
            score_threshold=config["box_score_thresh"],
            iou=config["box_nms"],
            shortest_side=1e-2,
            shortest_answer=-1.0,
            rows=config["dets_per_img"],
        ),
        mask_head=MaskHeadSpec(
            size=14, convs=(channels,) * 4, width=channels, norm=None, planes=columns, paste="torchvision"
        ),
    )


def spec_v2(config: Mapping[str, Any]) -> MaskRCNNSpec:
    """`maskrcnn_resnet50_fpn_v2`: batch norm in the pyramid and both heads, two convolutions in the RPN, four in the
    box head, and one fully connected layer after them."""
    v1 = spec(config)
    norm, channels = v1.backbone.norm, config["fpn_ch"]
    return replace(
        v1,
        neck=NeckSpec(channels, norm=norm),
        rpn=replace(v1.rpn, convs=2),
        box_head=replace(v1.box_head, convs=(channels,) * 4, layers=(config["box_head_hidden"],), norm=norm),
        mask_head=replace(v1.mask_head, norm=norm),
    )


IGNORED = ((r".*\.num_batches_tracked", "counts training steps; batch norm does not move any more"),)

NAMES = (
    (r"backbone\.body\.conv1\.weight", "backbone.stem.layers.0.conv.weight"),
    (r"backbone\.body\.bn1\.(\w+)", r"backbone.stem.layers.0.norm.\1"),
    *resnet_names(r"backbone\.body"),
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.laterals.\1.conv.\2"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.(\w+)", r"neck.laterals.\1.norm.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.outputs.\1.conv.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.(\w+)", r"neck.outputs.\1.norm.\2"),
    (r"rpn\.head\.conv\.(\d)\.0\.(\w+)", r"rpn.head.convs.\1.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.convs.0.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.head.logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.head.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"box_head.layers.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"box_head.layers.1.\1"),
    (r"roi_heads\.box_head\.([0-3])\.0\.(\w+)", r"box_head.convs.\1.conv.\2"),
    (r"roi_heads\.box_head\.([0-3])\.1\.(\w+)", r"box_head.convs.\1.norm.\2"),
    (r"roi_heads\.box_head\.5\.(\w+)", r"box_head.layers.0.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_predictor.scores.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_predictor.deltas.\1"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", r"mask_head.convs.\1.conv.\2"),
    (r"roi_heads\.mask_head\.(\d)\.1\.(\w+)", r"mask_head.convs.\1.norm.\2"),
    *((rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.(\w+)", rf"mask_head.convs.{i}.conv.\1") for i in range(4)),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.upsample.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.logits.\1"),
)
