"""Detectron.pytorch: Detectron's `generalized_rcnn` with FPN, written again in PyTorch.

https://github.com/roytseng-tw/Detectron.pytorch. What the code base calls batch norm is a factor and a summand for each
channel. The corners of a box are its first and last pixel ("the +1 convention"), anchors lie around the stride's first
square, an overlap of just the threshold is too much, proposals may lie on the padding, pictures are BGR, the background
is class 0 and has offsets and a mask plane of its own. Levels of the pyramid are numbered from the coarsest.

Two things cannot be as they are there, since a graph is not told how much its picture was scaled: the last pixel of a
final box is the network's, there it is the photograph's; and the picture is resized as bytes, there as floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from models.blocks.anchors import around_pixels, declared_stride
from models.blocks.boxes import BoxCoder
from models.blocks.colours import ColourSpec
from models.blocks.detections import DetectionSpec
from models.blocks.mask_rcnn_spec import BoxHeadSpec, MaskHeadSpec, MaskRCNNSpec, NeckSpec
from models.blocks.norm import Affine, GroupNorm, Norm
from models.blocks.pyramid_pool import LevelRule, PyramidPool
from models.blocks.resnet import BLOCKS, ResNetSpec
from models.blocks.rpn import AnchorSpec, RPNSpec
from server.preprocess import ShortestEdgeInput

EXTENT = 1.0
STRIDES = (4, 8, 16, 32, 64)
LEVELS = LevelRule(inside=1e-6, extent=EXTENT)
INPUT = ShortestEdgeInput(
    short_side=800, long_side=1333, multiple=32, rounding="nearest", resample="linear", reduced_decoding=False
)
POOL = PyramidPool(strides=STRIDES[:4], level=LEVELS, sampling=2, aligned=False)

PIXEL_MEANS = (((102.9801, 115.9465, 122.7717),),)  # blue, green, red

# The code base's defaults (lib/core/config.py) of what is read below: a configuration says what is different.
DEFAULTS: Mapping[str, Any] = {
    "PIXEL_MEANS": PIXEL_MEANS,
    "MODEL.CONV_BODY": "",
    "MODEL.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "RESNETS.NUM_GROUPS": 1,
    "RESNETS.WIDTH_PER_GROUP": 64,
    "RESNETS.STRIDE_1X1": True,
    "RESNETS.TRANS_FUNC": "bottleneck_transformation",
    "RESNETS.STEM_FUNC": "basic_bn_stem",
    "RESNETS.SHORTCUT_FUNC": "basic_bn_shortcut",
    "FPN.FPN_ON": False,
    "FPN.MULTILEVEL_RPN": False,
    "FPN.MULTILEVEL_ROIS": False,
    "FPN.DIM": 256,
    "FPN.COARSEST_STRIDE": 32,
    "FPN.RPN_ASPECT_RATIOS": (0.5, 1, 2),
    "FPN.RPN_ANCHOR_START_SIZE": 32,
    "FPN.USE_GN": False,
    "GROUP_NORM.NUM_GROUPS": 32,
    "GROUP_NORM.EPSILON": 1e-5,
    "FAST_RCNN.ROI_BOX_HEAD": "",
    "FAST_RCNN.MLP_HEAD_DIM": 1024,
    "FAST_RCNN.ROI_XFORM_METHOD": "RoIPoolF",
    "FAST_RCNN.ROI_XFORM_RESOLUTION": 14,
    "FAST_RCNN.ROI_XFORM_SAMPLING_RATIO": 0,
    "MRCNN.ROI_MASK_HEAD": "",
    "MRCNN.DIM_REDUCED": 256,
    "MRCNN.DILATION": 2,
    "MRCNN.RESOLUTION": 14,
    "MRCNN.ROI_XFORM_RESOLUTION": 7,
    "MRCNN.ROI_XFORM_SAMPLING_RATIO": 0,
    "MRCNN.CLS_SPECIFIC_MASK": True,
    "MRCNN.THRESH_BINARIZE": 0.5,
    "TEST.RPN_NMS_THRESH": 0.7,
    "TEST.RPN_PRE_NMS_TOP_N": 12000,
    "TEST.RPN_POST_NMS_TOP_N": 2000,
    "TEST.NMS": 0.3,
    "TEST.SCORE_THRESH": 0.05,
    "TEST.DETECTIONS_PER_IM": 100,
}
# Options that have one value here; any other would be left out in silence. Defaults not listed above are this value.
ONLY: Mapping[str, Any] = {
    "RESNETS.RES5_DILATION": 1,
    "FPN.FPN_ON": True,
    "FPN.MULTILEVEL_RPN": True,
    "FPN.MULTILEVEL_ROIS": True,
    "FPN.EXTRA_CONV_LEVELS": False,
    "FPN.RPN_MIN_LEVEL": 2,
    "FPN.RPN_MAX_LEVEL": 6,
    "FPN.ROI_MIN_LEVEL": 2,
    "FPN.ROI_MAX_LEVEL": 5,
    "FPN.ROI_CANONICAL_SCALE": 224,
    "FPN.ROI_CANONICAL_LEVEL": 4,
    "RPN.CLS_ACTIVATION": "sigmoid",
    "GROUP_NORM.DIM_PER_GP": -1,
    "FAST_RCNN.ROI_BOX_HEAD": "fast_rcnn_heads.roi_2mlp_head",
    "FAST_RCNN.ROI_XFORM_METHOD": "RoIAlign",
    "MRCNN.ROI_XFORM_METHOD": "RoIAlign",
    "MRCNN.DILATION": 1,
    "MRCNN.UPSAMPLE_RATIO": 1,
    "MRCNN.USE_FC_OUTPUT": False,
    "TEST.BBOX_REG": True,
    "TEST.RPN_MIN_SIZE": 0,
    "TEST.SOFT_NMS.ENABLED": False,
    "TEST.BBOX_VOTE.ENABLED": False,
}
DEPTHS = {f"FPN.fpn_ResNet{depth}_conv5_body": depth for depth in (50, 101, 152)}
MASK_CONVS = {
    "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs": 4,
    "mask_rcnn_heads.mask_rcnn_fcn_head_v1up": 2,
}
RESIDUALS = {
    ("bottleneck_transformation", "basic_bn_stem", "basic_bn_shortcut"): "affine",
    ("bottleneck_gn_transformation", "basic_gn_stem", "basic_gn_shortcut"): "group",
}

Config = Mapping[str, Any]
Told = Callable[[str], Any]


def spec(config: Config) -> MaskRCNNSpec:
    """
    Args:
        config: as a file of Detectron.pytorch's `configs/` has it, and MODEL.NUM_CLASSES, which counts the background
            and which the code base takes from the data set.

    Raises:
        ValueError: an option has a value that is not supported.
    """

    def told(option: str) -> Any:
        return _told(config, option)

    for option, wanted in ONLY.items():
        if told(option) != wanted:
            raise ValueError(f"{option} should be {wanted!r}, got {told(option)!r}, which is not supported")
    if told("MRCNN.RESOLUTION") != 2 * told("MRCNN.ROI_XFORM_RESOLUTION"):
        raise ValueError(
            f"MRCNN.RESOLUTION should be twice MRCNN.ROI_XFORM_RESOLUTION, got {told('MRCNN.RESOLUTION')} and "
            f"{told('MRCNN.ROI_XFORM_RESOLUTION')}"
        )
    columns, agnostic = told("MODEL.NUM_CLASSES"), told("MODEL.CLS_AGNOSTIC_BBOX_REG")
    group = GroupNorm(told("GROUP_NORM.NUM_GROUPS"), told("GROUP_NORM.EPSILON"))
    return MaskRCNNSpec(
        dialect="detectron_pytorch",
        colours=_colours(told("PIXEL_MEANS")),
        multiple=told("FPN.COARSEST_STRIDE"),
        backbone=_backbone(told, group),
        neck=NeckSpec(told("FPN.DIM"), norm=group if told("FPN.USE_GN") else None),
        rpn=RPNSpec(
            anchors=AnchorSpec(
                cells=tuple(
                    around_pixels(stride, [told("FPN.RPN_ANCHOR_START_SIZE") * 2**level], told("FPN.RPN_ASPECT_RATIOS"))
                    for level, stride in enumerate(STRIDES)
                ),
                strides=STRIDES,
                stride=declared_stride,
            ),
            convs=1,
            coder=BoxCoder(extent=EXTENT),
            before_nms=told("TEST.RPN_PRE_NMS_TOP_N"),
            after_nms=told("TEST.RPN_POST_NMS_TOP_N"),
            proposals=told("TEST.RPN_POST_NMS_TOP_N"),
            iou=_just_below(told("TEST.RPN_NMS_THRESH")),
            shortest_side=-math.inf,
            edge_multiple=told("FPN.COARSEST_STRIDE"),
        ),
        pool=_pool(told("FAST_RCNN.ROI_XFORM_SAMPLING_RATIO")),
        mask_pool=_pool(told("MRCNN.ROI_XFORM_SAMPLING_RATIO")),
        shared_stage=None,
        box_head=BoxHeadSpec(
            size=told("FAST_RCNN.ROI_XFORM_RESOLUTION"),
            convs=(),
            layers=(told("FAST_RCNN.MLP_HEAD_DIM"),) * 2,
            norm=None,
            score_columns=columns,
            box_sets=2 if agnostic else columns,
        ),
        detection=DetectionSpec(
            classes=columns - 1,
            first_class=1,
            sets=1 if agnostic else columns - 1,
            coder=BoxCoder(weights=tuple(told("MODEL.BBOX_REG_WEIGHTS")), extent=EXTENT),
            score_threshold=told("TEST.SCORE_THRESH"),
            iou=_just_below(told("TEST.NMS")),
            shortest_side=-math.inf,
            shortest_answer=-math.inf,
            rows=told("TEST.DETECTIONS_PER_IM"),
        ),
        mask_head=MaskHeadSpec(
            size=told("MRCNN.ROI_XFORM_RESOLUTION"),
            convs=(told("MRCNN.DIM_REDUCED"),)
            * _one_of(MASK_CONVS, "MRCNN.ROI_MASK_HEAD", told("MRCNN.ROI_MASK_HEAD")),
            width=told("MRCNN.DIM_REDUCED"),
            norm=None,
            planes=columns if told("MRCNN.CLS_SPECIFIC_MASK") else 1,
            paste="torchvision",
            threshold=told("MRCNN.THRESH_BINARIZE"),
        ),
    )


def _told(config: Config, option: str) -> Any:
    """An option by its name with dots, or the code base's default."""
    value: Any = config
    for part in option.split("."):
        if part not in value:
            return DEFAULTS[option] if option in DEFAULTS else ONLY[option]
        value = value[part]
    return value


def _backbone(told: Told, group: Norm) -> ResNetSpec:
    """Stem and outputs have one width, however wide the groups."""
    functions = (told("RESNETS.TRANS_FUNC"), told("RESNETS.STEM_FUNC"), told("RESNETS.SHORTCUT_FUNC"))
    norm = _one_of(RESIDUALS, "RESNETS.TRANS_FUNC, STEM_FUNC and SHORTCUT_FUNC", functions)
    return ResNetSpec(
        blocks=BLOCKS[_one_of(DEPTHS, "MODEL.CONV_BODY", told("MODEL.CONV_BODY"))],
        middle=told("RESNETS.NUM_GROUPS") * told("RESNETS.WIDTH_PER_GROUP"),
        groups=told("RESNETS.NUM_GROUPS"),
        stride_in_1x1=told("RESNETS.STRIDE_1X1"),
        norm=Affine() if norm == "affine" else group,
    )


def _one_of(known: Mapping[Any, Any], option: str, value: Any) -> Any:
    """
    Raises:
        ValueError: a value that we do not have.
    """
    if value not in known:
        raise ValueError(f"{option} should be one of {', '.join(map(str, known))}, got {value!r}")
    return known[value]


def _pool(sampling: int) -> PyramidPool:
    return PyramidPool(STRIDES[:4], LEVELS, sampling=sampling, aligned=False)


def _colours(means: Any) -> ColourSpec:
    """Nothing is divided; the mean is told as an array of 1 x 1 x 3 in BGR order."""
    blue, green, red = (float(value) for value in np.ravel(means))
    return ColourSpec((red, green, blue), (1.0, 1.0, 1.0), order=(2, 1, 0))


def _just_below(threshold: float) -> float:
    """The largest number of single precision below: what is more than that is at least the threshold."""
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) < threshold else np.nextafter(nearest, np.float32(0)))


IGNORED = ((r"Keypoint_(Head|Outs)\..*", "no box and no mask depends on the keypoints"),)

NAMES = (
    (r"Conv_Body\.conv_body\.res1\.conv1\.weight", "backbone.stem.layers.0.conv.weight"),
    (r"Conv_Body\.conv_body\.res1\.[bg]n1\.(\w+)", r"backbone.stem.layers.0.norm.\1"),
    *(
        rule
        for i in range(4)
        for rule in (
            (rf"Conv_Body\.conv_body\.res{i + 2}\.(\d+)\.conv(\d)\.weight", rf"backbone.stages.{i}.\1.conv\2.weight"),
            (rf"Conv_Body\.conv_body\.res{i + 2}\.(\d+)\.[bg]n(\d)\.(\w+)", rf"backbone.stages.{i}.\1.norm\2.\3"),
            (
                rf"Conv_Body\.conv_body\.res{i + 2}\.(\d+)\.downsample\.0\.weight",
                rf"backbone.stages.{i}.\1.shortcut.conv.weight",
            ),
            (
                rf"Conv_Body\.conv_body\.res{i + 2}\.(\d+)\.downsample\.1\.(\w+)",
                rf"backbone.stages.{i}.\1.shortcut.norm.\2",
            ),
        )
    ),
    *(
        rule
        for theirs, ours in (
            (r"conv_top", "laterals.3"),
            *((rf"topdown_lateral_modules\.{i}\.conv_lateral", f"laterals.{2 - i}") for i in range(3)),
            *((rf"posthoc_modules\.{i}", f"outputs.{3 - i}") for i in range(4)),
        )
        for rule in (
            (rf"Conv_Body\.{theirs}(?:\.0)?\.(weight|bias)", rf"neck.{ours}.conv.\1"),
            (rf"Conv_Body\.{theirs}\.1\.(\w+)", rf"neck.{ours}.norm.\1"),
        )
    ),
    (r"RPN\.FPN_RPN_conv\.(\w+)", r"rpn.head.convs.0.\1"),
    (r"RPN\.FPN_RPN_cls_score\.(\w+)", r"rpn.head.logits.\1"),
    (r"RPN\.FPN_RPN_bbox_pred\.(\w+)", r"rpn.head.deltas.\1"),
    (r"Box_Head\.fc1\.(\w+)", r"box_head.layers.0.\1"),
    (r"Box_Head\.fc2\.(\w+)", r"box_head.layers.1.\1"),
    (r"Box_Outs\.cls_score\.(\w+)", r"box_predictor.scores.\1"),
    (r"Box_Outs\.bbox_pred\.(\w+)", r"box_predictor.deltas.\1"),
    *((rf"Mask_Head\.conv_fcn\.{2 * i}\.(\w+)", rf"mask_head.convs.{i}.conv.\1") for i in range(4)),
    (r"Mask_Head\.upconv\.(\w+)", r"mask_head.upsample.\1"),
    (r"Mask_Outs\.classify\.(\w+)", r"mask_head.logits.\1"),
)
