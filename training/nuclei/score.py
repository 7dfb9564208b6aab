"""How good are the answers: COCO mask AP with 1000 detections a picture, and the score of the 2018 Data Science Bowl.

COCO's own limit of 100 detections would hide 13 % of these nuclei, so every figure here is with 1000.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

THRESHOLDS = np.linspace(0.50, 0.95, 10)
MAX_DETECTIONS = 1000


@dataclass(frozen=True, slots=True)
class Score:
    """All on the 0..1 scale."""

    ap: float  # mean over IoU 0.50..0.95
    ap50: float
    ap75: float
    dsb: float  # mean over pictures of the mean over IoU of TP / (TP + FP + FN)


def score(index: dict, results: list[dict], dsb_results: list[dict] | None = None) -> Score:
    """
    Args:
        index: COCO ground truth (`images`, `annotations`, `categories`); only its images are evaluated.
        results: COCO results at any score, ranked for AP.
        dsb_results: the answers at the default score threshold; `results` when None.
    """
    ap, ap50, ap75 = _average_precision(index, results)
    return Score(ap, ap50, ap75, _dsb(index, results if dsb_results is None else dsb_results))


def _average_precision(index: dict, results: list[dict]) -> tuple[float, float, float]:
    if not results:
        return 0.0, 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = index
        truth.createIndex()
        # loadRes writes into what it is given, and would take the area from a bbox
        bare = [
            {key: result[key] for key in ("image_id", "category_id", "segmentation", "score")} for result in results
        ]
        evaluation = COCOeval(truth, truth.loadRes(bare), "segm")
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, 0]  # (IoU thresholds, recalls)
    return float(precision.mean()), float(precision[0].mean()), float(precision[5].mean())


def _dsb(index: dict, results: list[dict]) -> float:
    truth: dict[int, list] = {image["id"]: [] for image in index["images"]}
    found: dict[int, list] = {image["id"]: [] for image in index["images"]}
    for annotation in index["annotations"]:
        truth[annotation["image_id"]].append(annotation["segmentation"])
    for result in results:
        found[result["image_id"]].append(result["segmentation"])
    return float(np.mean([dsb_of_picture(truth[i], found[i]) for i in truth]))


def dsb_of_picture(truth: list[dict], found: list[dict]) -> float:
    """One picture's Data Science Bowl score, masks as compressed RLE; 1.0 when nothing is there and nothing found."""
    if not truth and not found:
        return 1.0
    if not truth or not found:
        return 0.0
    iou = np.asarray(coco_mask.iou(found, truth, [0] * len(truth)))  # (found, truth)
    total = 0.0
    for threshold in THRESHOLDS:
        hits = iou > threshold
        matched = min(int(hits.any(axis=1).sum()), int(hits.any(axis=0).sum()))  # one to one above IoU 0.5
        total += matched / (len(truth) + len(found) - matched)
    return total / len(THRESHOLDS)
