"""Mask R-CNN: boxes from proposals, and a mask for every box (He et al. 2017, https://arxiv.org/abs/1703.06870).

    pictures -> Normalise -> ResNet -> FPN -> RPN -> proposals
    proposals -> PyramidPool -> box head -> detections -> PyramidPool -> mask head -> mask logits

torchvision, detectron2, mmdetection, maskrcnn-benchmark and Detectron.pytorch built the same network and disagree about
a dozen numbers: a `MaskRCNNSpec` holds them, and `models/dialects/` knows each code base's own. C4, where the last
stage of the backbone is the head, and DC5, where it is dilated in place of a pyramid, are specs too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from models.blocks.cluster_nms import ClusterNMS
from models.blocks.colours import Normalise
from models.blocks.detections import detections
from models.blocks.fpn import FPN
from models.blocks.mask_rcnn_spec import MaskRCNNSpec
from models.blocks.plugin_free import plugin_free
from models.blocks.resnet import ResNet, stage
from models.blocks.roi_heads import Averaged, BoxPredictor, FullyConnected, MaskHead
from models.blocks.rpn import RPN
from models.blocks.top import UNUSED
from models.dialects import (
    coco,
    detectron2,
    detectron_pytorch,
    maskrcnn_benchmark,
    mmdetection,
    published,
    torchvision,
)
from server.masks import RoiMasks
from server.preprocess import AnyInput, FixedInput, ShortestEdgeInput

__all__ = [
    "mask_rcnn_r50_c4_d2",
    "mask_rcnn_r50_caffe_fpn_mmdet",
    "mask_rcnn_r50_dc5_d2",
    "mask_rcnn_r50_dcn_fpn_d2",
    "mask_rcnn_r50_dcn_fpn_mmdet",
    "mask_rcnn_r50_fpn",
    "mask_rcnn_r50_fpn_coco_v1",
    "mask_rcnn_r50_fpn_d2",
    "mask_rcnn_r50_fpn_detectron_pytorch",
    "mask_rcnn_r50_fpn_mmdet",
    "mask_rcnn_r50_fpn_mrb",
    "mask_rcnn_r50_fpn_v2",
    "mask_rcnn_r101_fpn_d2",
    "mask_rcnn_r101_fpn_detectron_pytorch",
    "mask_rcnn_tiny",
    "mask_rcnn_x101_fpn_d2",
    "mask_rcnn_x101_fpn_detectron_pytorch",
]

C5 = 3  # the backbone's last stage, counted from 0


class MaskRCNN(nn.Module):
    """
    Args:
        classes: names in label order, without the background.
        input: how pictures come to the network.
        score_threshold: what an answer scores unless the request says otherwise.

    Raises:
        ValueError: not as many names as the spec has classes.
    """

    def __init__(
        self,
        spec: MaskRCNNSpec,
        classes: tuple[str, ...],
        input: AnyInput,  # noqa: A002
        score_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if len(classes) != spec.detection.classes:
            raise ValueError(f"the network tells {spec.detection.classes} classes apart, got {len(classes)} names")
        self.spec = spec
        self.dialect = spec.dialect
        self.classes = classes
        self.input = input
        self.score_threshold = score_threshold
        self.masks = RoiMasks(paste=spec.mask_head.paste, threshold=spec.mask_head.threshold)

        self.normalise = Normalise(spec.colours)
        self.backbone = ResNet(spec.backbone)
        neck = spec.neck
        self.neck = nn.Identity() if neck is None else FPN(self.backbone.channels, neck.channels, neck.norm)
        channels = self.backbone.channels[-1] if neck is None else neck.channels
        self.rpn = RPN(channels, spec.rpn)
        self.shared_stage = nn.Identity() if spec.shared_stage is None else stage(spec.shared_stage, C5)
        channels = channels if spec.shared_stage is None else spec.shared_stage.width(C5)
        box, mask = spec.box_head, spec.mask_head
        self.box_head = (
            FullyConnected(channels, box.size, box.convs, box.layers, box.norm) if box.layers else Averaged(channels)
        )
        self.box_predictor = BoxPredictor(self.box_head.width, box.score_columns, box.box_sets)
        self.mask_head = MaskHead(channels, mask.convs, mask.width, mask.planes, mask.norm)

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (B, h, w, 3) uint8 RGB.
            sizes: (B, 2) int32, true (height, width) of each picture inside its input.

        Returns:
            boxes (B, K, 4) xyxy in input pixels, scores (B, K) best first, labels (B, K) int32, mask_logits
            (B, K, m, m) of each row's own class; a row with a score <= 0 is unused.
        """
        x = self.normalise(images, sizes)  # (B, 3, h, w)
        maps = self.maps(x)
        proposals, logits = self.rpn.propose(self.rpn(maps), (x.shape[2], x.shape[3]), sizes)  # (B, P, 4), (B, P)
        boxes, scores, labels = self.detect(maps, proposals, logits, sizes)  # (B, K, ...)
        return {
            "boxes": boxes,
            "scores": scores,
            "labels": labels,
            "mask_logits": self.masks_of(maps, boxes, labels),  # (B, K, m, m)
        }

    def plugin_free(self, nms: ClusterNMS) -> MaskRCNN:
        """The same network, with the same weights, from operators that a stock TensorRT has."""
        largest = self.input.size if isinstance(self.input, FixedInput) else self.input.max_size
        twin = MaskRCNN(plugin_free(self.spec, largest, nms), self.classes, self.input, self.score_threshold)
        twin.load_state_dict(self.state_dict(), assign=True)
        return twin.eval()

    def maps(self, x: Tensor) -> list[Tensor]:
        """The network's input (B, 3, h, w) to the maps that objects are sought on (B, C, h', w'), finest first."""
        return list(self.neck(self.backbone(x)))

    def detect(
        self, maps: Sequence[Tensor], proposals: Tensor, logits: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            proposals: (B, P, 4) xyxy, input pixels.
            logits: (B, P), `UNUSED` where there is no proposal.

        Returns:
            Boxes (B, K, 4), scores (B, K) and labels (B, K).
        """
        batch, count = logits.shape
        scores, deltas = self.box_stage(maps, proposals)  # (B * P, ...)
        return detections(
            torch.softmax(scores, dim=-1).unflatten(0, (batch, count)),  # (B, P, columns)
            deltas.unflatten(0, (batch, count)),  # (B, P, 4 * sets)
            proposals,
            logits > UNUSED / 2,
            sizes,
            self.spec.detection,
        )

    def masks_of(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Boxes (B, K, 4) and labels (B, K) to the logits (B, K, m, m) of each one's class."""
        logits = self.mask_stage(maps, boxes)  # (B * K, planes, m, m)
        planes = self.spec.mask_head.planes
        plane = (labels.flatten().to(torch.int64) + (planes - self.spec.detection.classes)).clamp(0, planes - 1)
        chosen = logits.gather(1, plane[:, None, None, None].expand(-1, 1, *logits.shape[2:]))  # (B * K, 1, m, m)
        return chosen[:, 0].unflatten(0, labels.shape)

    def box_stage(self, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, K, 4) xyxy in input pixels to class logits (B * K, columns) and deltas (B * K, 4 * sets), both in
        the code base's own order."""
        pooled = self.spec.pool(maps, boxes, self.spec.box_head.size)  # (B * K, C, m, m)
        return self.box_predictor(self.box_head(self.shared_stage(pooled)))

    def mask_stage(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """As `box_stage`, to mask logits (B * K, planes, m, m) in the code base's own order."""
        pooled = self.spec.mask_pool(maps, boxes, self.spec.mask_head.size)  # (B * K, C, m, m)
        return self.mask_head(self.shared_stage(pooled))

    def raw(self, network_input: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """What lies between, for comparison with another implementation.

        Args:
            network_input: (B, 3, h, w), normalised and padded.
            sizes: (B, 2) true (height, width) of each picture.

        Returns:
            features.k, rpn_logits.k (B, A, h', w'), rpn_deltas.k (B, 4A, h', w'), finest first; proposals (B, P, 4) and
            proposal_logits (B, P), `UNUSED` where there is none.
        """
        maps = self.maps(network_input)
        heads = self.rpn(maps)
        size = (network_input.shape[2], network_input.shape[3])
        proposals, logits = self.rpn.propose(heads, size, sizes)
        found = {"proposals": proposals, "proposal_logits": logits}
        for level, (features, (objectness, deltas)) in enumerate(zip(maps, heads, strict=True)):
            found |= {
                f"features.{level}": features,
                f"rpn_logits.{level}": objectness,
                f"rpn_deltas.{level}": deltas,
            }
        return found


class Builder(Protocol):
    """Makes a model, untrained, of the full size that its code base published.

    Args:
        classes: names in label order, without the background.
        input_size: (height, width), multiples of what the network is padded to, where the graph is to take that size
            only; unless told it takes any, and pictures are resized as the code base does.
        resize: how pictures come to fill `input_size`; "letterbox" unless told.
        mean, std: per channel in RGB order, grey levels 0 to 255.
        top: rows of an answer.

    Raises:
        ValueError: `input_size` is not made of multiples.
    """

    def __call__(
        self,
        *,
        classes: tuple[str, ...] = ...,
        input_size: tuple[int, int] | None = None,
        resize: Literal["stretch", "letterbox"] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        top: int | None = None,
    ) -> MaskRCNN: ...


def builder(
    spec: Callable[[Mapping[str, Any]], MaskRCNNSpec],
    config: Callable[[int], Mapping[str, Any]],
    rule: ShortestEdgeInput,
    names: tuple[str, ...] = coco.NAMES,
) -> Builder:
    """
    Args:
        spec: of a dialect.
        config: its configuration for a number of classes.
        rule: how its pictures are resized.
        names: the classes that it was published with.
    """

    def build(
        *,
        classes: tuple[str, ...] = names,
        input_size: tuple[int, int] | None = None,
        resize: Literal["stretch", "letterbox"] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        top: int | None = None,
    ) -> MaskRCNN:
        told = spec(config(len(classes)))
        colours = told.colours
        told = replace(
            told,
            colours=replace(colours, mean=mean or colours.mean, std=std or colours.std),
            detection=replace(told.detection, rows=top or told.detection.rows),
        )
        if input_size is None:
            return MaskRCNN(told, classes, rule.model_copy(update={"multiple": told.multiple}))
        if any(side % told.multiple for side in input_size):
            raise ValueError(f"input size {input_size} should be made of multiples of {told.multiple}")
        shrink: Literal["area", "linear"] = "linear" if rule.resample == "linear" else "area"
        return MaskRCNN(told, classes, FixedInput(size=input_size, resize=resize or "letterbox", shrink=shrink))

    return build


mask_rcnn_r50_fpn = builder(torchvision.spec, published.torchvision, torchvision.INPUT, coco.sparse_names())
# the weights MaskRCNN_ResNet50_FPN_Weights.COCO_V1 and what was tuned from them: batch norm without its epsilon
mask_rcnn_r50_fpn_coco_v1 = builder(
    torchvision.spec, published.torchvision_coco_v1, torchvision.INPUT, coco.sparse_names()
)
mask_rcnn_r50_fpn_v2 = builder(torchvision.spec_v2, published.torchvision, torchvision.INPUT, coco.sparse_names())

mask_rcnn_r50_fpn_d2 = builder(detectron2.spec, published.detectron2_fpn, detectron2.INPUT)
mask_rcnn_r50_c4_d2 = builder(detectron2.spec, published.detectron2_c4, detectron2.INPUT)
mask_rcnn_r50_dc5_d2 = builder(detectron2.spec, published.detectron2_dc5, detectron2.INPUT)
mask_rcnn_r50_dcn_fpn_d2 = builder(detectron2.spec, published.detectron2_deformable, detectron2.INPUT)
mask_rcnn_r101_fpn_d2 = builder(detectron2.spec, published.detectron2_r101, detectron2.INPUT)
mask_rcnn_x101_fpn_d2 = builder(detectron2.spec, published.detectron2_x101, detectron2.INPUT)

mask_rcnn_r50_fpn_mmdet = builder(mmdetection.spec, published.mmdetection, mmdetection.INPUT)
mask_rcnn_r50_caffe_fpn_mmdet = builder(mmdetection.spec, published.mmdetection_caffe, mmdetection.INPUT)
mask_rcnn_r50_dcn_fpn_mmdet = builder(mmdetection.spec, published.mmdetection_deformable, mmdetection.INPUT)

mask_rcnn_r50_fpn_mrb = builder(maskrcnn_benchmark.spec, published.maskrcnn_benchmark, maskrcnn_benchmark.INPUT)

mask_rcnn_r50_fpn_detectron_pytorch = builder(
    detectron_pytorch.spec, published.detectron_pytorch, detectron_pytorch.INPUT
)
mask_rcnn_r101_fpn_detectron_pytorch = builder(
    detectron_pytorch.spec, published.detectron_pytorch_r101, detectron_pytorch.INPUT
)
mask_rcnn_x101_fpn_detectron_pytorch = builder(
    detectron_pytorch.spec, published.detectron_pytorch_x101, detectron_pytorch.INPUT
)

# small enough to export in a test
mask_rcnn_tiny = builder(
    torchvision.spec,
    published.tiny,
    torchvision.INPUT.model_copy(update={"short_side": 96, "long_side": 160}),
    ("blob", "ring"),
)
