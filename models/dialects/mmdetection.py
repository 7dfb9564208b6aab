"""mmdetection 2.x and 3.x: `MaskRCNN` with a ResNet of pytorch or caffe style, plain or deformable.

https://github.com/open-mmlab/mmdetection. Anchors are not rounded, growth is bounded below as well as above, RoIAlign
samples between pixel centres and as densely as the map has cells, the background is the last class and has neither
offsets nor a mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.blocks.anchors import by_root, declared_stride
from models.blocks.boxes import LARGEST_GROWTH, BoxCoder
from models.blocks.colours import ColourSpec
from models.blocks.detections import DetectionSpec
from models.blocks.mask_rcnn_spec import BoxHeadSpec, MaskHeadSpec, MaskRCNNSpec, NeckSpec
from models.blocks.norm import BatchNorm
from models.blocks.pyramid_pool import LevelRule, PyramidPool
from models.blocks.resnet import BLOCKS, Deformable, ResNetSpec
from models.blocks.rpn import AnchorSpec, RPNSpec
from models.dialects.names import resnet_names
from server.preprocess import ShortestEdgeInput

LEVELS = LevelRule(canonical_size=56.0, canonical_level=0.0, first_level=0.0, inside=1e-6)
INPUT = ShortestEdgeInput(
    short_side=800, long_side=1333, multiple=32, rounding="nearest", resample="linear", reduced_decoding=False
)
POOL = PyramidPool(strides=(4, 8, 16, 32), level=LEVELS, sampling=0, aligned=True)

Config = Mapping[str, Any]


def spec(config: Config) -> MaskRCNNSpec:
    """
    Args:
        config: `model` of mmdetection's configuration, `test_cfg` inside.
    """
    colours, rpn, roi, test = (config[name] for name in ("data_preprocessor", "rpn_head", "roi_head", "test_cfg"))
    box, mask = roi["bbox_head"], roi["mask_head"]
    classes = box["num_classes"]
    sets = 1 if box["reg_class_agnostic"] else classes
    proposals = test["rpn"]["max_per_img"]
    return MaskRCNNSpec(
        dialect="mmdetection",
        colours=_colours(colours),
        multiple=colours["pad_size_divisor"],
        backbone=_backbone(config["backbone"]),
        neck=NeckSpec(config["neck"]["out_channels"]),
        rpn=RPNSpec(
            anchors=_anchors(rpn["anchor_generator"]),
            convs=1,
            coder=_coder(rpn["bbox_coder"]),
            before_nms=test["rpn"]["nms_pre"],
            after_nms=proposals,
            proposals=proposals,
            iou=test["rpn"]["nms"]["iou_threshold"],
            shortest_side=_above(test["rpn"]["min_bbox_size"]),
        ),
        pool=_pool(roi["bbox_roi_extractor"]),
        mask_pool=_pool(roi["mask_roi_extractor"]),
        shared_stage=None,
        box_head=BoxHeadSpec(
            size=box["roi_feat_size"],
            convs=(),
            layers=(box["fc_out_channels"],) * 2,
            norm=None,
            score_columns=classes + 1,
            box_sets=sets,
        ),
        detection=DetectionSpec(
            classes=classes,
            first_class=0,
            sets=sets,
            coder=_coder(box["bbox_coder"]),
            score_threshold=test["rcnn"]["score_thr"],
            iou=test["rcnn"]["nms"]["iou_threshold"],
            shortest_side=-math.inf,
            shortest_answer=-math.inf,
            rows=test["rcnn"]["max_per_img"],
        ),
        mask_head=MaskHeadSpec(
            size=roi["mask_roi_extractor"]["roi_layer"]["output_size"],
            convs=(mask["conv_out_channels"],) * mask["num_convs"],
            width=mask["conv_out_channels"],
            norm=None,
            planes=1 if mask.get("class_agnostic") else mask["num_classes"],
            paste="detectron2",
            threshold=test["rcnn"]["mask_thr_binary"],
        ),
    )


def _colours(preprocessor: Config) -> ColourSpec:
    """`mean` is in the order that the network sees; pictures arrive BGR and are turned or not."""
    mean, std = preprocessor["mean"], preprocessor["std"]
    if preprocessor["bgr_to_rgb"]:
        return ColourSpec(tuple(mean), tuple(std))
    return ColourSpec(tuple(mean[::-1]), tuple(std[::-1]), order=(2, 1, 0))


def _backbone(backbone: Config) -> ResNetSpec:
    base = backbone.get("base_channels", 64)
    dcn = backbone.get("dcn") or {}
    return ResNetSpec(
        stem_channels=base,
        middle=base,
        channels=4 * base,
        blocks=BLOCKS[backbone["depth"]],
        stride_in_1x1=backbone["style"] == "caffe",
        deformable=Deformable(
            stages=tuple(index for index, has in enumerate(backbone.get("stage_with_dcn", ())) if has),
            groups=dcn.get("deform_groups", 1),
            modulated=dcn.get("type") == "DCNv2",
        ),
        norm=BatchNorm(),
    )


def _anchors(generator: Config) -> AnchorSpec:
    """Sizes are scales of the strides, unless the configuration has other sizes."""
    _refuse_others(generator, "anchor_generator", ("type", "scales", "ratios", "strides", "base_sizes"))
    scales, ratios, strides = generator["scales"], generator["ratios"], tuple(generator["strides"])
    bases = generator.get("base_sizes") or strides
    cells = tuple(by_root(scales, ratios, base=float(base)) for base in bases)
    return AnchorSpec(cells=cells, strides=strides, stride=declared_stride)


def _pool(extractor: Config) -> PyramidPool:
    layer = extractor["roi_layer"]
    strides = tuple(extractor["featmap_strides"])
    return PyramidPool(strides, LEVELS, sampling=layer["sampling_ratio"], aligned=layer.get("aligned", True))


def _coder(coder: Config) -> BoxCoder:
    """Their offsets are times the deviations, ours over the weights."""
    _refuse_others(coder, "bbox_coder", ("type", "target_means", "target_stds"))
    if any(coder["target_means"]):
        raise ValueError(f"bbox_coder.target_means should be 0, got {coder['target_means']}")
    x, y, width, height = (1.0 / deviation for deviation in coder["target_stds"])
    return BoxCoder(weights=(x, y, width, height), smallest_log=-LARGEST_GROWTH)


def _refuse_others(part: Config, name: str, known: Sequence[str]) -> None:
    """
    Raises:
        ValueError: the configuration says something that would be left out here.
    """
    others = sorted(set(part) - set(known))
    if others:
        raise ValueError(f"{name} has {', '.join(others)}, which is not supported; only {', '.join(known)} are")


def _above(length: float) -> float:
    """The shortest side that is longer; any side where nothing is asked of it."""
    if length < 0:
        return -math.inf
    return float(np.nextafter(np.float32(length), np.float32(np.inf))) if length else float(np.finfo(np.float32).tiny)


IGNORED = ((r".*\.num_batches_tracked", "counts training steps; batch norm does not move any more"),)

NAMES = (
    (r"backbone\.conv1\.weight", "backbone.stem.layers.0.conv.weight"),
    (r"backbone\.bn1\.(\w+)", r"backbone.stem.layers.0.norm.\1"),
    *resnet_names("backbone"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", r"neck.laterals.\1.conv.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", r"neck.outputs.\1.conv.\2"),
    (r"rpn_head\.rpn_conv\.(\w+)", r"rpn.head.convs.0.\1"),
    (r"rpn_head\.rpn_cls\.(\w+)", r"rpn.head.logits.\1"),
    (r"rpn_head\.rpn_reg\.(\w+)", r"rpn.head.deltas.\1"),
    (r"roi_head\.bbox_head\.shared_fcs\.(\d)\.(\w+)", r"box_head.layers.\1.\2"),
    (r"roi_head\.bbox_head\.fc_cls\.(\w+)", r"box_predictor.scores.\1"),
    (r"roi_head\.bbox_head\.fc_reg\.(\w+)", r"box_predictor.deltas.\1"),
    (r"roi_head\.mask_head\.convs\.(\d)\.conv\.(\w+)", r"mask_head.convs.\1.conv.\2"),
    (r"roi_head\.mask_head\.upsample\.(\w+)", r"mask_head.upsample.\1"),
    (r"roi_head\.mask_head\.conv_logits\.(\w+)", r"mask_head.logits.\1"),
)
