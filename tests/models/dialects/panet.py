"""PANet (Liu et al. 2018, https://arxiv.org/abs/1803.01534), as much as lets a recorded case of it speak for what it
took from Detectron.pytorch.

    pyramid -> a second path, from the finest level up -> RPN
    boxes on all four levels -> a layer for each level -> their maximum -> the rest of the box head, of the mask head
    mask logits = those of the mask head + a fully connected square, the same for every class

Backbone, pyramid, RPN, proposals, predictors, detections and the enlargement of masks are ours, by the dialect's spec;
what PANet added takes its weights as they were recorded. https://github.com/ShuLiu1993/PANet at f055f716,
lib/modeling/{FPN,fast_rcnn_heads,mask_rcnn_heads}.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.mask_rcnn_spec import MaskRCNNSpec
from models.blocks.norm import GroupNorm
from models.blocks.pyramid_pool import PyramidPool, row_of_each
from models.blocks.roi_align import roi_align
from models.dialects import detectron_pytorch
from models.mask_rcnn import MaskRCNN
from models.weights import load_into

ADDED = (
    r"Conv_Body\.panet_buttomup_|Box_Head\.conv1_head\.|Mask_Head\.(mask_conv1|mask_conv4_fc|mask_conv5_fc|mask_fc)\."
)
# With group norm the heads number their layers otherwise than those that the dialect has.
HEADS = (
    *((rf"Box_Head\.convs\.{3 * i}\.(\w+)", rf"box_head.convs.{i}.conv.\1") for i in range(3)),
    *((rf"Box_Head\.convs\.{3 * i + 1}\.(\w+)", rf"box_head.convs.{i}.norm.\1") for i in range(3)),
    (r"Box_Head\.fc\.(\w+)", r"box_head.layers.0.\1"),
    *((rf"Mask_Head\.conv_fcn\.{3 * i}\.(\w+)", rf"mask_head.convs.{i}.conv.\1") for i in range(2)),
    *((rf"Mask_Head\.conv_fcn\.{3 * i + 1}\.(\w+)", rf"mask_head.convs.{i}.norm.\1") for i in range(2)),
    (r"Mask_Head\.mask_conv4\.0\.(\w+)", r"mask_head.convs.2.conv.\1"),
    (r"Mask_Head\.mask_conv4\.1\.(\w+)", r"mask_head.convs.2.norm.\1"),
)


class PANet(MaskRCNN):
    """
    Args:
        spec: of the dialect, in the case's widths; the pyramid's norm is the heads' too.
        state: the recorded weights, under their own names.
    """

    def __init__(self, spec: MaskRCNNSpec, state: Mapping[str, Tensor]) -> None:
        assert spec.neck is not None
        assert isinstance(spec.neck.norm, GroupNorm)
        self.group = spec.neck.norm
        three = (spec.mask_head.width,) * 3
        spec = replace(
            spec,
            box_head=replace(spec.box_head, convs=three, layers=spec.box_head.layers[:1], norm=self.group),
            mask_head=replace(spec.mask_head, convs=three, norm=self.group),
        )
        names = tuple(f"class {number}" for number in range(spec.detection.classes))
        super().__init__(spec, names, detectron_pytorch.INPUT)
        kept = {name: tensor for name, tensor in state.items() if not re.match(ADDED, name)}
        load_into(self, kept, (*HEADS, *detectron_pytorch.NAMES))
        self.added = {name: tensor for name, tensor in state.items() if name not in kept}
        self.eval()

    def maps(self, x: Tensor) -> list[Tensor]:
        pyramid = super().maps(x)[:4]
        found = pyramid[:1]
        for i, features in enumerate(pyramid[1:]):
            below = self.layer(found[-1], f"Conv_Body.panet_buttomup_conv1_modules.{i}", stride=2)
            found.append(self.layer(below + features, f"Conv_Body.panet_buttomup_conv2_modules.{i}"))
        return [*found, found[-1][:, :, ::2, ::2]]

    def box_stage(self, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.from_all_levels(maps, boxes, self.spec.box_head.size, "Box_Head.conv1_head")
        return self.box_predictor(self.box_head(pooled))

    def mask_stage(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        pooled = self.from_all_levels(maps, boxes, self.spec.mask_head.size, "Mask_Head.mask_conv1")
        x = self.mask_head.convs[:2](pooled)
        fully = self.layer(self.layer(x, "Mask_Head.mask_conv4_fc"), "Mask_Head.mask_conv5_fc").flatten(1)
        fully = torch.relu(
            F.linear(fully, self.added["Mask_Head.mask_fc.0.weight"], self.added["Mask_Head.mask_fc.0.bias"])
        )
        logits: Tensor = self.mask_head.logits(torch.relu(self.mask_head.upsample(self.mask_head.convs[2](x))))
        return logits + fully.reshape(-1, 1, *logits.shape[2:])

    def from_all_levels(self, maps: Sequence[Tensor], boxes: Tensor, size: int, name: str) -> Tensor:
        pool, rows, boxes = self.spec.pool, row_of_each(boxes), boxes.flatten(0, 1)
        assert isinstance(pool, PyramidPool)
        levels = [
            self.layer(roi_align(features, boxes, rows, 1 / stride, size, pool.sampling, pool.aligned), f"{name}.{i}")
            for i, (features, stride) in enumerate(zip(maps, pool.strides, strict=False))
        ]
        return torch.stack(levels).amax(dim=0)

    def layer(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        """Convolution, with a bias where one was recorded, group norm, ReLU."""
        x = F.conv2d(x, self.added[f"{name}.0.weight"], self.added.get(f"{name}.0.bias"), stride, padding=1)
        scale, shift = self.added[f"{name}.1.weight"], self.added[f"{name}.1.bias"]
        return torch.relu(F.group_norm(x, self.group.groups, scale, shift, self.group.eps))
