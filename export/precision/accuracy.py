"""What fewer bits cost, on pictures that people have annotated: mask AP as COCO measures it, before and after.

Answers are made as the server makes them: decoded, placed, run one by one on the engine that serves the bundle, masks
in original pixels. AP is the mean over IoU 0.50 to 0.95 and over classes, of all answers whatever their score, up to
1000 a picture; COCO's own 100 would hide part of a crowded picture.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import ExportError
from export.precision.pictures import read
from server.bundle_files import sha256_of
from server.engines import Engine
from server.formats import FORMATS
from server.manifest import ClassName
from server.masks import AnyMasks
from server.preprocess import AnyInput
from server.rle import string_to_counts

ALLOWED = {"fp32": 0.0, "fp16": 0.001, "int8": 0.005}  # AP may fall by that much
MOST = 1000  # answers a picture
METRIC = "COCO mask AP, IoU 0.50 to 0.95, up to 1000 answers a picture, score threshold 0"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """On the 0..1 scale."""

    ap: float  # mean over IoU 0.50 to 0.95
    ap50: float
    ap75: float


@dataclass(frozen=True, slots=True)
class Annotated:
    """Pictures and what is in them: COCO's `images`, `annotations` and `categories`, checked, masks as run lengths."""

    index: dict[str, Any]
    folder: Path
    sha256: str
    category_ids: list[int]  # of the model's classes, in label order; -1 where nobody annotated one


@dataclass(frozen=True, slots=True)
class Served:
    """What turns a picture into instances, besides an engine."""

    input: AnyInput
    masks: AnyMasks
    classes: Sequence[str]


def read_annotations(path: Path, folder: Path, classes: Sequence[str]) -> Annotated:
    """
    Args:
        path: COCO instances, masks as run lengths or polygons.
        folder: holds the pictures by their `file_name`.
        classes: names in label order; categories are found by name.

    Raises:
        ExportError: not such a file, a picture is missing, or somebody annotated a class that the model has not.
    """
    _pycocotools()
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ExportError(f"--check {path} cannot be read as JSON: {error}; give COCO instances") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(index, dict) or not all(isinstance(index.get(name), list) and index[name] for name in lists):
        raise ExportError(f"--check {path} should have images, annotations and categories, none of them empty")
    try:
        missing = [image["file_name"] for image in index["images"] if not (folder / image["file_name"]).is_file()]
        named = {category["id"]: category["name"] for category in index["categories"]}
        sizes = {image["id"]: (image["height"], image["width"]) for image in index["images"]}
        shown = [entry for entry in index["annotations"] if entry["image_id"] in sizes]
        annotations = [_numbered(n, entry, sizes[entry["image_id"]]) for n, entry in enumerate(shown, start=1)]
        used = {entry["category_id"] for entry in annotations}
    except KeyError as error:
        raise ExportError(f"--check {path} is not COCO: an entry has no {error}; give COCO instances") from None
    except (TypeError, AttributeError):
        raise ExportError(f"--check {path} is not COCO: an entry is of another kind; give COCO instances") from None
    if len(missing) == len(index["images"]):
        raise ExportError(f"--images {folder} holds none of the {len(missing)} pictures of {path}, as {missing[0]}")
    if missing:
        raise ExportError(
            f"--images {folder} lacks {len(missing)} of {len(index['images'])} pictures of {path}, as {missing[0]}; "
            "give the folder that has them all, or leave them out of the annotations"
        )
    if not annotations:
        raise ExportError(
            f"--check {path} has no annotation of any of its {len(sizes)} pictures; there is nothing to find"
        )
    foreign = sorted({str(named.get(number, number)) for number in used if named.get(number) not in classes})
    if foreign:
        raise ExportError(
            f"--check {path} has annotations of {', '.join(foreign[:5])}; the model's classes are "
            f"{', '.join(list(classes)[:8])}: rename the categories, or give --classes"
        )
    by_name = {name: number for number, name in named.items()}
    whole: dict[str, Any] = {"info": {}} | index | {"annotations": annotations}
    return Annotated(whole, folder, sha256_of(path), [by_name.get(name, -1) for name in classes])


def measure(served: Served, engine: Engine, annotated: Annotated, title: str) -> Accuracy:
    """Run all pictures and score what comes of them.

    Raises:
        ExportError: a picture cannot be read.
    """
    results: list[dict[str, Any]] = []
    images = annotated.index["images"]
    classes = [ClassName(id=number, name=name) for number, name in enumerate(served.classes, start=1)]
    for number, image in enumerate(images, start=1):
        inputs, frame = read(annotated.folder / image["file_name"], served.input)
        outputs = {name: tensor[0] for name, tensor in engine.run_alone(inputs).items()}
        segments = sorted(served.masks.decode(outputs, frame, 0.0), key=lambda segment: -segment.score)[:MOST]
        if frame.size != (image["height"], image["width"]):
            raise ExportError(
                f"{image['file_name']} is {frame.size[1]} x {frame.size[0]} upright, its annotations are for "
                f"{image['width']} x {image['height']}; give the pictures that were annotated"
            )
        for instance in FORMATS["rle"](segments, frame.size, classes)["instances"]:
            category = annotated.category_ids[instance["category_id"] - 1]
            kept = {name: instance[name] for name in ("segmentation", "score")}
            results.append(kept | {"image_id": image["id"], "category_id": category})
        if number % 25 == 0:
            print(f" {title} {number}/{len(images)}", end="", flush=True)
    return average_precision(annotated.index, [result for result in results if result["category_id"] >= 0])


def average_precision(index: dict[str, Any], results: list[dict[str, Any]]) -> Accuracy:
    """
    Args:
        results: COCO results, masks as run lengths.
    """
    coco, evaluate = _pycocotools()
    if not results:
        return Accuracy(0.0, 0.0, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco()
        truth.dataset = index
        truth.createIndex()
        evaluation = evaluate(truth, truth.loadRes(results), "segm")
        evaluation.params.maxDets = [MOST]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]  # (IoU thresholds, recalls, classes)

    def mean(part: Any) -> float:
        known = part[part > -1]  # -1: nobody annotated that class
        return float(np.mean(known)) if known.size else 0.0

    return Accuracy(mean(precision), mean(precision[0]), mean(precision[5]))


def judged(
    precision: str, before: Accuracy, after: Sequence[Accuracy], annotated: Annotated, accept_loss: bool, seconds: float
) -> dict[str, Any]:
    """What the manifest says of accuracy.

    Args:
        after: of the graph, and of the one for TensorRT where it was measured.

    Raises:
        ExportError: AP fell by more than is allowed, or was 0 before, and nobody accepted that.
    """
    worst = min(after, key=lambda measured: measured.ap)
    fell = before.ap - worst.ap
    if precision != "fp32" and before.ap == 0 and not accept_loss:
        raise ExportError(
            "AP is 0 in fp32 already, so nothing can be seen to fall; give --check annotations of what this model finds"
        )
    if fell > ALLOWED[precision] and not accept_loss:
        raise ExportError(
            f"AP falls by {fell:.4f}, from {before.ap:.4f} in fp32 to {worst.ap:.4f} in {precision}; allowed is "
            f"{ALLOWED[precision]:g}: give more of the pictures that will be served with --calibrate, choose another "
            "--precision, or take it as it is with --accept-loss"
        )
    twin = {f"{precision} for TensorRT": asdict(measured) for measured in after[1:]}
    return {
        "metric": METRIC,
        "annotations_sha256": annotated.sha256,
        "pictures": len(annotated.index["images"]),
        "instances": len(annotated.index["annotations"]),
        "fp32": asdict(before),
        precision: asdict(after[0]),
        **twin,
        "ap_fell_by": fell,
        "allowed": ALLOWED[precision],
        "loss_accepted": accept_loss and fell > ALLOWED[precision],
        "seconds": round(seconds, 1),
    }


def _numbered(number: int, annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """What COCO's evaluation asks of an annotation. It is numbered anew: there, one with the number 0 is never found.

    Args:
        number: from 1.
        size: (height, width) of its picture.

    Raises:
        ExportError: it has no mask that can be read.
    """
    from pycocotools import mask

    height, width = size
    segmentation = annotation["segmentation"]
    try:
        if not segmentation:
            raise ValueError("it is empty")
        if isinstance(segmentation, list):
            runs = mask.merge(mask.frPyObjects(segmentation, height, width))
        else:
            counts = segmentation["counts"]
            counts = string_to_counts(counts).tolist() if isinstance(counts, str) else counts
            if tuple(segmentation["size"]) != size or sum(counts) != height * width or min(counts) < 0:
                raise ValueError(f"its run lengths are of another size than its picture, {width} x {height}")
            runs = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    except Exception as error:  # pycocotools raises whatever comes
        raise ExportError(
            f"the mask of annotation {annotation.get('id', number)} of --check cannot be read: {error}; "
            "give polygons or run lengths, or leave out what has only a box"
        ) from None
    return {
        "id": number,
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "iscrowd": annotation.get("iscrowd", 0),
        "area": float(mask.area(runs)),
        "segmentation": runs,
    }


def _pycocotools() -> tuple[Any, Any]:
    """
    Raises:
        ExportError: it is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError:
        raise ExportError(
            "--check needs pycocotools, which is not installed: pip install pycocotools, or '.[training]'"
        ) from None
    return COCO, COCOeval
