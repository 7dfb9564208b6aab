"""maskrcnn-benchmark and what was forked from it: `GeneralizedRCNN` with FPN.

https://github.com/facebookresearch/maskrcnn-benchmark. The corners of a box are its first and last pixel ("the +1
convention"), anchors lie around the stride's first square, the frozen batch norm has no epsilon, pictures are BGR, the
background is class 0 and has offsets and a mask plane of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from models.blocks.anchors import around_pixels, declared_stride
from models.blocks.boxes import BoxCoder
from models.blocks.colours import ColourSpec
from models.blocks.detections import DetectionSpec
from models.blocks.mask_rcnn_spec import BoxHeadSpec, MaskHeadSpec, MaskRCNNSpec, NeckSpec
from models.blocks.norm import BatchNorm
from models.blocks.pyramid_pool import LevelRule, PyramidPool
from models.blocks.resnet import BLOCKS, Deformable, ResNetSpec
from models.blocks.rpn import AnchorSpec, RPNSpec
from models.dialects.names import resnet_names
from server.preprocess import ShortestEdgeInput

EXTENT = 1.0
LEVELS = LevelRule(inside=1e-6, extent=EXTENT)
INPUT = ShortestEdgeInput(short_side=800, long_side=1333, multiple=32, rounding="short_first", resample="triangle")
POOL = PyramidPool(strides=(4, 8, 16, 32), level=LEVELS, sampling=2, aligned=False)

DEPTHS = {"R-50-FPN": 50, "R-101-FPN": 101, "R-152-FPN": 152}
PIXELS = {"PIXEL_MEAN": (102.9801, 115.9465, 122.7717), "PIXEL_STD": (1.0, 1.0, 1.0), "TO_BGR255": True}

Config = Mapping[str, Any]


def spec(config: Config) -> MaskRCNNSpec:
    """
    Args:
        config: MODEL of maskrcnn-benchmark's configuration, and INPUT where pixels are not as in `PIXELS`.
    """
    model = config["MODEL"]
    rpn, heads, box, mask = (model[name] for name in ("RPN", "ROI_HEADS", "ROI_BOX_HEAD", "ROI_MASK_HEAD"))
    columns = box["NUM_CLASSES"]
    agnostic = bool(model["CLS_AGNOSTIC_BBOX_REG"])
    norm = BatchNorm(eps=0.0)
    resnets = model["RESNETS"]
    return MaskRCNNSpec(
        dialect="maskrcnn_benchmark",
        colours=_colours(config.get("INPUT", {})),
        multiple=32,
        backbone=ResNetSpec(
            stem_channels=resnets["STEM_OUT_CHANNELS"],
            middle=resnets["NUM_GROUPS"] * resnets["WIDTH_PER_GROUP"],
            channels=resnets["RES2_OUT_CHANNELS"],
            blocks=BLOCKS[DEPTHS[model["BACKBONE"]["CONV_BODY"]]],
            groups=resnets["NUM_GROUPS"],
            stride_in_1x1=resnets["STRIDE_IN_1X1"],
            deformable=Deformable(
                stages=tuple(index for index, has in enumerate(resnets["STAGE_WITH_DCN"]) if has),
                groups=resnets["DEFORMABLE_GROUPS"],
                modulated=resnets["WITH_MODULATED_DCN"],
            ),
            norm=norm,
        ),
        neck=NeckSpec(resnets["BACKBONE_OUT_CHANNELS"]),
        rpn=RPNSpec(
            anchors=AnchorSpec(
                cells=tuple(
                    around_pixels(stride, [size], rpn["ASPECT_RATIOS"])
                    for stride, size in zip(rpn["ANCHOR_STRIDE"], rpn["ANCHOR_SIZES"], strict=True)
                ),
                strides=tuple(rpn["ANCHOR_STRIDE"]),
                stride=declared_stride,
            ),
            convs=1,
            coder=BoxCoder(extent=EXTENT),
            before_nms=rpn["PRE_NMS_TOP_N_TEST"],
            after_nms=rpn["POST_NMS_TOP_N_TEST"],
            proposals=rpn["FPN_POST_NMS_TOP_N_TEST"],
            iou=rpn["NMS_THRESH"],
            shortest_side=rpn["MIN_SIZE"] - EXTENT,
        ),
        pool=_pool(box),
        mask_pool=_pool(mask),
        shared_stage=None,
        box_head=BoxHeadSpec(
            size=box["POOLER_RESOLUTION"],
            convs=(),
            layers=(box["MLP_HEAD_DIM"],) * 2,
            norm=None,
            score_columns=columns,
            box_sets=2 if agnostic else columns,
        ),
        detection=DetectionSpec(
            classes=columns - 1,
            first_class=1,
            sets=1 if agnostic else columns - 1,
            coder=BoxCoder(weights=tuple(heads["BBOX_REG_WEIGHTS"]), extent=EXTENT),
            score_threshold=heads["SCORE_THRESH"],
            iou=heads["NMS"],
            shortest_side=-math.inf,
            shortest_answer=-math.inf,
            rows=heads["DETECTIONS_PER_IMG"],
        ),
        mask_head=MaskHeadSpec(
            size=mask["POOLER_RESOLUTION"],
            convs=tuple(mask["CONV_LAYERS"]),
            width=mask["CONV_LAYERS"][-1],
            norm=None,
            planes=columns,
            paste="torchvision",
        ),
    )


def _pool(head: Config) -> PyramidPool:
    strides = tuple(round(1 / scale) for scale in head["POOLER_SCALES"])
    return PyramidPool(strides, LEVELS, sampling=head["POOLER_SAMPLING_RATIO"], aligned=False)


def _colours(pixels: Config) -> ColourSpec:
    """TO_BGR255 turns pictures of 0 to 1 in RGB into BGR of 0 to 255; mean and deviation are of what it gives."""
    mean, std, to_bgr = (pixels.get(name, default) for name, default in PIXELS.items())
    if to_bgr:
        return ColourSpec(tuple(mean[::-1]), tuple(std[::-1]), order=(2, 1, 0))
    return ColourSpec(tuple(255 * value for value in mean), tuple(255 * value for value in std))


IGNORED = (
    (r"rpn\.anchor_generator\.cell_anchors\.\d+", "anchors follow from the configuration"),
    (r".*\.num_batches_tracked", "counts training steps; batch norm does not move any more"),
)

NAMES = (
    (r"backbone\.body\.stem\.conv1\.weight", "backbone.stem.layers.0.conv.weight"),
    (r"backbone\.body\.stem\.bn1\.(\w+)", r"backbone.stem.layers.0.norm.\1"),
    *resnet_names(r"backbone\.body"),
    *(
        rule
        for i in range(4)
        for rule in (
            (rf"backbone\.fpn\.fpn_inner{i + 1}\.(\w+)", rf"neck.laterals.{i}.conv.\1"),
            (rf"backbone\.fpn\.fpn_layer{i + 1}\.(\w+)", rf"neck.outputs.{i}.conv.\1"),
            (rf"roi_heads\.mask\.feature_extractor\.mask_fcn{i + 1}\.(\w+)", rf"mask_head.convs.{i}.conv.\1"),
        )
    ),
    (r"rpn\.head\.conv\.(\w+)", r"rpn.head.convs.0.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.head.logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.head.deltas.\1"),
    (r"roi_heads\.box\.feature_extractor\.fc6\.(\w+)", r"box_head.layers.0.\1"),
    (r"roi_heads\.box\.feature_extractor\.fc7\.(\w+)", r"box_head.layers.1.\1"),
    (r"roi_heads\.box\.predictor\.cls_score\.(\w+)", r"box_predictor.scores.\1"),
    (r"roi_heads\.box\.predictor\.bbox_pred\.(\w+)", r"box_predictor.deltas.\1"),
    (r"roi_heads\.mask\.predictor\.conv5_mask\.(\w+)", r"mask_head.upsample.\1"),
    (r"roi_heads\.mask\.predictor\.mask_fcn_logits\.(\w+)", r"mask_head.logits.\1"),
)
