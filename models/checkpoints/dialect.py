"""Whose key names these are. Every code base calls the same layers otherwise; a few keys of each give it away."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The first that any key matches. What comes earlier is told apart from what comes later: maskrcnn-benchmark's backbone
# looks like torchvision's but for its stem.
SIGNS = (
    ("maskserve", r"backbone\.stages\.\d+\.\d+\.(conv\d|norm\d|shortcut)\.|box_predictor\.scores\."),
    ("detectron_pytorch", r"Conv_Body\.|RPN\.(FPN_)?RPN_|Box_Outs\."),
    ("maskrcnn_benchmark", r"backbone\.body\.stem\.|backbone\.fpn\.fpn_inner\d|roi_heads\.(box|mask|maskiou)\."),
    (
        "torchvision",
        r"backbone\.body\.|backbone\.fpn\.(inner|layer)_blocks\.|roi_heads\.mask_head\.0\.|rpn\.head\.",
    ),
    (
        "detectron2",
        r"backbone\.(bottom_up|stem\.conv1|res\d|fpn_lateral\d)\.|proposal_generator\.|roi_heads\.(res5|box_predictor)\.",
    ),
    ("mmdetection", r"(neck|roi_head|rpn_head|bbox_head|mask_head|panoptic_head|panoptic_fusion_head|semantic_head)\."),
    ("torchvision", r"classifier\.(\d|cbr|low_classifier)"),
)


def dialect_of(names: Iterable[str]) -> str | None:
    """The code base that names its weights so; None when it is none of ours."""
    listed = list(names)
    for dialect, sign in SIGNS:
        pattern = re.compile(sign)
        if any(pattern.match(name) for name in listed):
            return dialect
    return None
