"""One picture of a case as the network sees it, and what the reference found in it; our answers in the same terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from export.conform.cases import Case
from export.conform.conventions import painted
from export.conform.matching import Detections
from export.conform.systems import System, content_size, raw_tensors
from models.blocks.colours import ColourSpec
from models.mask_rcnn import MaskRCNN
from server.engines import Tensors
from server.geometry import Frame
from server.masks import Masks


@dataclass(frozen=True)
class View:
    """A picture in a batch."""

    case: Case = field(repr=False)
    frame: Frame
    picture: NDArray[np.uint8] = field(repr=False)  # (H, W, 3) RGB; at the network's size where bytes are resized
    original: NDArray[np.uint8] | None = field(repr=False)  # (H, W, 3) where the reference resized it
    raw: Mapping[str, NDArray[Any]] = field(repr=False)
    wanted: Detections | None = field(repr=False)  # None for a picture that only keeps the others company

    def mirrored(self) -> View:
        """Another picture of the same size, of which the reference said nothing."""
        return replace(self, picture=np.ascontiguousarray(self.picture[:, ::-1]), original=None, raw={}, wanted=None)

    def placed(self) -> NDArray[np.uint8]:
        """The network's input (h, w, 3), zero beyond the picture; floats are resized from it elsewhere."""
        tensor = np.zeros((*self.frame.input_size, 3), np.uint8)
        height, width = min(self.picture.shape[0], tensor.shape[0]), min(self.picture.shape[1], tensor.shape[1])
        tensor[:height, :width] = self.picture[:height, :width]
        return tensor


def see(system: System, case: Case, multiple: int) -> View:
    """
    Args:
        multiple: a picture that ran alone was padded to multiples of this.

    Raises:
        ExportError: the case lacks its picture or its settings.
    """
    raw = raw_tensors(system, case)
    content = content_size(system, case)
    padded = case.padded_to or (-(-content[0] // multiple) * multiple, -(-content[1] // multiple) * multiple)
    frame = Frame(case.original_size, padded, content, system.resample)
    resized = "net_u8" in case.pictures
    picture = case.pictures["net_u8" if resized else "image_u8"]
    found = case.tensors("det")
    count = int(case.meta["det_masks_shape"][0])
    wanted = Detections(
        boxes=found["boxes"].astype(np.float64) if count else np.zeros((0, 4)),
        scores=found["scores"].astype(np.float64) if count else np.zeros(0),
        labels=(found["labels"].astype(np.int64) if count else np.zeros(0, np.int64)) - system.first_label,
        masks=case.masks(),
    )
    original = case.pictures["image_u8"] if resized or system.resizes_in_float else None
    return View(case, frame, picture, original, raw, wanted)


def resized_floats(view: View, colours: ColourSpec) -> Tensor:
    """(1, 3, h, w): normalised, then resized bilinearly, then laid on zeros (torchvision's order of things)."""
    pixels = torch.from_numpy(view.picture).to(torch.float32) / 255  # (H, W, 3)
    mean, std = (torch.tensor(values, dtype=torch.float32) / 255 for values in (colours.mean, colours.std))
    x = ((pixels - mean) / std)[..., list(colours.order)].permute(2, 0, 1)[None]  # (1, 3, H, W)
    resized = functional.interpolate(x, size=view.frame.content, mode="bilinear", align_corners=False)
    height, width = view.frame.content
    padded = torch.zeros(1, 3, *view.frame.input_size)
    padded[..., :height, :width] = resized
    return padded


def sizes_of(views: Sequence[View]) -> NDArray[np.int32]:
    """(B, 2): what the graph is told of each picture."""
    return np.array([view.frame.content for view in views], np.int32)


def decode(masks: Masks, outputs: Mapping[str, NDArray[Any]], row: int, frame: Frame) -> Detections:
    """One row of a batch of answers, through the representation as the server does."""
    segments = list(masks.decode({name: tensor[row] for name, tensor in outputs.items()}, frame, 0.0))
    return Detections(
        boxes=np.array([segment.box for segment in segments], np.float64).reshape(-1, 4),
        scores=np.array([segment.score for segment in segments], np.float64),
        labels=np.array([segment.label for segment in segments], np.int64),
        masks=np.array([painted(segment.patch, frame.size) for segment in segments], np.bool_).reshape(-1, *frame.size),
    )


def answers(model: MaskRCNN, raw: Mapping[str, Tensor], sizes: Tensor) -> Tensors:
    """From what lies between to what the graph ends at."""
    maps = pyramid(raw)
    boxes, scores, labels = model.detect(maps, raw["proposals"], raw["proposal_logits"], sizes)
    masks = model.masks_of(maps, boxes, labels)
    found = {"boxes": boxes, "scores": scores, "labels": labels, "mask_logits": masks}
    return {name: tensor.numpy() for name, tensor in found.items()}


def pyramid(raw: Mapping[str, Tensor]) -> list[Tensor]:
    return [raw[f"features.{level}"] for level in range(sum(name.startswith("features.") for name in raw))]
