"""Cases without a network: the conventions on which code bases differ, each through the part of ours that has it.

conventions_mask_paste    server.masks.roi       28 x 28 probabilities over boxes, some of them partly outside
conventions_resize        server.preprocess      the resized picture, pixel for pixel
conventions_rle_polygon   server.rle             COCO run lengths, both ways
conventions_roi_pool      models.blocks          pyramid level of a box, and RoIAlign on it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.conform.cases import Case
from export.conform.matching import ABSOLUTE_AFTER_ROI, Agreement, agree, differ
from export.conform.table import Row, verdict
from models.blocks.atlas_roi_align import atlas_pool
from models.blocks.pyramid_pool import PyramidPool
from models.dialects import detectron2, mmdetection, torchvision
from server import rle
from server.geometry import Frame, Picture
from server.masks import RoiMasks
from server.masks.roi import Paste
from server.preprocess import ShortestEdgeInput, place
from server.segments import Patch

PASTES: dict[str, Paste] = {
    "detectron2": "detectron2",
    "torchvision_gt_0.5": "torchvision",
    "mmdet_ge_0.5": "detectron2",
}
POOLS = {"torchvision": torchvision.POOL, "detectron2": detectron2.POOL, "mmdet": mmdetection.POOL}
FLIPPED = 4  # pixels of a pasted mask that may differ: logits and back is not the identity


def paste(case: Case) -> Iterator[Row]:
    """Masks of every convention, decoded as the server does."""
    given, wanted = case.tensors("in"), case.tensors("det")
    height, width = case.meta["HW"]
    for name, packed in wanted.items():
        if name not in PASTES:
            yield Row(case.system, case.name, name, "a paste rule that this version does not have", "not run")
            continue
        bits = np.unpackbits(packed, axis=1, count=height * width).reshape(-1, height, width).astype(np.bool_)
        found = pasted(given["soft_masks"], given["boxes"], (height, width), PASTES[name])
        result = agree(bits, found, [(i, i) for i in range(len(bits))])
        yield Row(case.system, case.name, name, masks_said(result), verdict(result.flipped <= FLIPPED))


def pasted(
    probabilities: NDArray[np.float32], boxes: NDArray[np.float32], size: tuple[int, int], rule: Paste
) -> NDArray[np.bool_]:
    """(N, H, W): every mask by itself through the representation that the server decodes with."""
    sure = probabilities.astype(np.float64).clip(1e-12, 1 - 1e-12)
    outputs = {
        "boxes": boxes.astype(np.float32),
        "scores": np.ones(len(boxes), np.float32),
        "labels": np.arange(len(boxes), dtype=np.int32),  # to tell them apart
        "mask_logits": np.log(sure / (1 - sure)).astype(np.float32),
    }
    found = np.zeros((len(boxes), *size), np.bool_)
    for segment in RoiMasks(paste=rule).decode(outputs, Frame(size, size, size), 0.0):
        found[segment.label] = painted(segment.patch, size)
    return found


def resize(case: Case) -> Iterator[Row]:
    """The resized picture of every code base whose rule a manifest can state."""
    picture = case.pictures["image_u8"]
    height, width = picture.shape[:2]
    rules: dict[str, tuple[dict[str, Any], Callable[[NDArray[Any]], NDArray[Any]], float]] = {
        "detectron2_PIL": ({"rounding": "nearest", "resample": "triangle"}, lambda pixels: pixels, 0.0),
        "mmcv_imrescale_cv2": ({"rounding": "nearest", "resample": "linear"}, lambda pixels: pixels, 0.0),
        "torchvision_rcnn_float": (  # it resizes in float, the server in bytes: half a level of rounding, and OpenCV's
            {"rounding": "floor", "resample": "linear"},
            lambda pixels: pixels.transpose(1, 2, 0) * 255,
            1.0,
        ),
    }
    for name, wanted in case.tensors("det").items():
        if name not in rules:
            yield Row(case.system, case.name, name, "not a resize rule of this version's systems", "not run")
            continue
        rule, to_levels, allowed = rules[name]
        spec = ShortestEdgeInput(
            short_side=case.meta["shortest"], long_side=case.meta["longest"], multiple=1, reduced_decoding=True, **rule
        )
        placed = place(Picture(picture, (0, 0, width, height)), spec.frame((height, width)))
        levels = to_levels(wanted)
        if placed.shape != levels.shape:
            yield Row(case.system, case.name, name, f"{placed.shape} for {levels.shape}", "FAIL")
            continue
        error = float(np.abs(placed.astype(np.float64) - levels).max())
        yield Row(case.system, case.name, name, f"{error:.2g} of 255 levels", verdict(error <= allowed))


def run_lengths(case: Case) -> Iterator[Row]:
    """COCO strings and counts of every mask, to the letter, and back."""
    masks = case.tensors("det")
    wrong = []
    for entry in case.meta["rle"]:
        size = (entry["size"][0], entry["size"][1])
        bits = masks[entry["id"]].astype(np.bool_)
        (written,) = rle.encode([Patch(0, 0, bits)], size)
        read = rle.counts_to_mask(rle.string_to_counts(entry["counts"]), size)
        counts = rle.string_to_counts(entry["counts"]).tolist()
        if written != entry["counts"] or counts != entry["uncompressed"] or not (read == bits).all():
            wrong.append(entry["id"])
    said = f"{len(wrong)} of {len(case.meta['rle'])} differ{': ' if wrong else ''}{', '.join(wrong[:3])}"
    yield Row(case.system, case.name, "run lengths", said, verdict(not wrong))
    if case.meta.get("polygons"):
        yield Row(case.system, case.name, "polygon fill", "no representation of this version fills polygons", "not run")


def pool(case: Case, pools: dict[str, PyramidPool] = POOLS) -> Iterator[Row]:
    """Pyramid level and pooled features of every box, by the rule of every code base, and without plugins."""
    given, wanted = case.tensors("in"), case.tensors("det")
    boxes = torch.from_numpy(given["boxes"])
    maps = [torch.from_numpy(given[name]) for name in sorted(name for name in given if name[0] == "p")]
    longest = int(torch.ceil(boxes[:, 2:] - boxes[:, :2]).max())  # some boxes leave the picture
    for name, tensor in wanted.items():
        rule, _, what = name.rpartition("_")
        if rule not in pools:
            yield Row(case.system, case.name, name, "a pooling rule that this version does not have", "not run")
        elif what == "level":
            levels = pools[rule].level(boxes, len(maps)).numpy()
            differing = int((levels != tensor).sum())
            said = f"{differing} of {len(levels)} boxes on another level"
            yield Row(case.system, case.name, name, said, verdict(not differing))
        else:
            for stage, way in ((name, pools[rule]), (f"{name}, twin", atlas_pool(pools[rule], (longest, longest)))):
                with torch.inference_mode():
                    found = way(maps, boxes[None], int(what)).numpy()
                result = differ(found, tensor, ABSOLUTE_AFTER_ROI)
                yield Row(case.system, case.name, stage, f"{result.of_std:.1e} std", verdict(result.of_tolerance <= 1))


CONVENTIONS: dict[str, Callable[[Case], Iterator[Row]]] = {
    "conventions_mask_paste": paste,
    "conventions_resize": resize,
    "conventions_rle_polygon": run_lengths,
    "conventions_roi_pool": pool,
}


def masks_said(result: Agreement) -> str:
    return f"IoU {result.worst:.4f}, mean {result.mean:.4f}, {result.flipped} px"


def painted(patch: Patch, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A patch in its whole picture (H, W)."""
    frame = np.zeros(size, np.bool_)
    height, width = patch.bits.shape
    frame[patch.y : patch.y + height, patch.x : patch.x + width] = patch.bits
    return frame
