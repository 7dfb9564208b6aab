"""Detectron.pytorch's Mask R-CNN, too small to learn anything, and a checkpoint of it as its training writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from models.blocks.mask_rcnn_spec import MaskRCNNSpec, NeckSpec
from models.dialects import detectron_pytorch, published
from models.mask_rcnn import builder
from models.weights import rename
from tests.models.dialects.detectron_pytorch_names import Widths, state_of
from tests.models.trained import trained

CLASSES = ("blob", "ring")
WIDTHS = Widths(blocks=(1, 1, 1, 1), stem=4, middle=4, stage=16, pyramid=8, hidden=16, mask=8, classes=3)


def narrow(config: Mapping[str, Any]) -> MaskRCNNSpec:
    spec = detectron_pytorch.spec(config)
    return replace(
        spec,
        backbone=replace(spec.backbone, blocks=WIDTHS.blocks, stem_channels=4, middle=4, channels=16),
        neck=NeckSpec(8),
        rpn=replace(spec.rpn, before_nms=40, after_nms=30, proposals=30),
        box_head=replace(spec.box_head, layers=(16, 16)),
        mask_head=replace(spec.mask_head, convs=(8,) * 4, width=8),
        detection=replace(spec.detection, rows=10),
    )


mask_rcnn_tiny = builder(
    narrow,
    published.detectron_pytorch,
    detectron_pytorch.INPUT.model_copy(update={"short_side": 96, "long_side": 160}),
    CLASSES,
)


def checkpoint(seed: int = 0) -> dict[str, Any]:
    """After a step of training, under Detectron.pytorch's names."""
    model = trained(mask_rcnn_tiny(), seed)
    ours = model.state_dict()
    names = rename(list(state_of(WIDTHS)), detectron_pytorch.NAMES)
    state = {theirs: ours[name] for theirs, name in names.items()}
    state["Conv_Body.conv_body.res1.bn1.weight"] /= 58  # grey levels come as they are; a trained stem makes them small
    weights = [torch.nn.Parameter(tensor) for tensor in state.values()]
    optimiser = torch.optim.SGD(weights, lr=0.02, momentum=0.9)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimiser.step()  # momenta of the weights' shapes lie in its state
    told = {"epoch": 1, "step": 89_999, "iters_per_epoch": 14_786}
    return {**told, "model": state, "optimizer": optimiser.state_dict()}
