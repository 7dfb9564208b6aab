"""The way a picture takes in the server: from the original's bytes, resized by the manifest's rule, to masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from export.conform.matching import Detections, agree, match
from export.conform.systems import System, input_rule
from export.conform.table import Row, Verdict, verdict
from export.conform.view import View, answers, decode, resized_floats, sizes_of
from models.blocks.colours import ColourSpec
from models.mask_rcnn import MaskRCNN
from server.engines import Engine
from server.geometry import Picture
from server.preprocess import place

SERVED_SHARE, SERVED_IOU, SERVED_SCORE, SERVED_MASKS = 0.95, 0.9, 0.05, 0.97
ROUNDING, ROUNDING_MEAN = 1.0, 0.35  # levels of 255: half of one, and what OpenCV's fixed point adds
BYTES = ColourSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # levels as they are


def served_rows(system: System, model: MaskRCNN, engine: Engine, view: View) -> Iterator[Row]:
    """From the original's bytes, resized as the server does it.

    A code base that resizes bytes is equalled. One that resizes floats cannot be: a byte is the nearest of 256 levels,
    and a network that nobody trained makes half a level into other detections (the reference's own picture, rounded,
    does the same). So two things are held in its place, that the picture is the reference's to a rounding, and that
    the answers are PyTorch's to the same bytes; and what became of the detections is told.
    """
    assert view.original is not None
    assert view.wanted is not None
    case, (height, width) = view.case, view.original.shape[:2]
    rule = input_rule(system, case, model.spec.multiple)
    frame = replace(rule.frame((height, width)), input_size=view.frame.input_size)
    if frame.content != view.frame.content:
        said = f"resized to {frame.content}, the reference to {view.frame.content}"
        yield Row(case.system, case.name, "served", said, "FAIL")
        return
    images = place(Picture(view.original, (0, 0, width, height)), frame)[None]
    sizes = sizes_of([view])
    found = decode(model.masks, engine.run({"images": images, "sizes": sizes}), 0, frame)
    if not system.resizes_in_float:
        yield _served(view, view.wanted, found, "served", None)
        return
    with torch.inference_mode():
        levels = resized_floats(view, BYTES).numpy()
        yield _rounding(view, np.abs(levels - images.transpose(0, 3, 1, 2)))
        x = model.normalise(torch.from_numpy(images), torch.from_numpy(sizes))
        told = answers(model, model.raw(x, torch.from_numpy(sizes)), torch.from_numpy(sizes))
    yield _served(view, decode(model.masks, told, 0, frame), found, "served, PyTorch on these bytes", None)
    yield _served(view, view.wanted, found, "served, reference on floats", "by design")


def _rounding(view: View, apart: NDArray[np.float32]) -> Row:
    """How far bytes lie from the floats that they stand for, in levels."""
    height, width = view.frame.content
    inside = apart[..., :height, :width]
    passes = float(inside.max()) <= ROUNDING and float(inside.mean()) <= ROUNDING_MEAN
    said = f"{inside.max():.2f} levels, mean {inside.mean():.2f}"
    return Row(view.case.system, view.case.name, "served, picture", said, verdict(passes))


def _served(view: View, wanted: Detections, found: Detections, stage: str, decided: Verdict | None) -> Row:
    result = match(wanted, found, SERVED_IOU, SERVED_SCORE)
    masks = agree(wanted.masks, found.masks, result.pairs)
    said = f"{len(result.pairs)} of {len(wanted.scores)}, {len(found.scores)} found; mean IoU {masks.mean:.4f}"
    passes = result.share >= SERVED_SHARE and masks.mean >= SERVED_MASKS
    return Row(view.case.system, view.case.name, stage, said, decided or verdict(passes))
