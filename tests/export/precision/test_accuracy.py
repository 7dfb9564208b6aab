"""AP before and after: the number itself, what is refused, and annotations that do not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import ExportError
from export.precision.accuracy import Accuracy, Annotated, Served, average_precision, judged, measure, read_annotations
from models.unet import unet_tiny
from server.rle import encode
from server.segments import Patch
from tests.export.precision.networks import pictures

SIZE = (40, 48)


def rle(y: int, x: int, side: int) -> dict[str, Any]:
    (counts,) = encode([Patch(y, x, np.ones((side, side), np.bool_))], SIZE)
    return {"size": list(SIZE), "counts": counts}


def coco(**changes: Any) -> dict[str, Any]:
    """Two pictures; a square in one as run lengths, in the other as a polygon."""
    square = [[4.0, 4.0, 14.0, 4.0, 14.0, 14.0, 4.0, 14.0]]
    return {
        "images": [image(i, f"{i}.png") for i in (0, 1)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 5, "segmentation": rle(4, 4, 10)},
            {"id": 2, "image_id": 1, "category_id": 5, "segmentation": square},
        ],
        "categories": [{"id": 5, "name": "blob"}],
    } | changes


def image(number: int, name: str) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}


def masked(segmentation: Any) -> dict[str, Any]:
    return coco(annotations=[{"id": 31, "image_id": 0, "category_id": 5, "segmentation": segmentation}])


def read(folder: Path, content: Any, classes: tuple[str, ...] = ("blob",)) -> Annotated:
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_annotations(path, pictures(folder / "images", 2, SIZE), classes)


def found(image: int, side: int, score: float = 0.9) -> dict[str, Any]:
    return {"image_id": image, "category_id": 5, "score": score, "segmentation": rle(4, 4, side)}


def test_ap_of_all_of_half_and_of_nothing(tmp_path: Path) -> None:
    index = read(tmp_path, coco()).index
    assert average_precision(index, [found(0, 10), found(1, 10)]) == Accuracy(1.0, 1.0, 1.0)
    half = average_precision(index, [found(0, 10)])
    assert half.ap == pytest.approx(51 / 101)  # of 101 recall levels those up to one half
    loose = average_precision(index, [found(0, 10), found(1, 8)])  # IoU 0.64: found up to 0.60
    assert loose.ap50 == 1.0
    assert loose.ap75 == pytest.approx(51 / 101)
    assert average_precision(index, []) == Accuracy(0.0, 0.0, 0.0)


def test_annotations_may_be_numbered_from_0_twice_or_not_at_all(tmp_path: Path) -> None:
    """COCO's evaluation knows those it has found by a number that is not 0."""
    for numbers in ((0, 1), (7, 7), (None, None)):
        content = coco()
        for annotation, number in zip(content["annotations"], numbers, strict=True):
            del annotation["id"]
            annotation |= {} if number is None else {"id": number}
        index = read(tmp_path, content).index
        assert average_precision(index, [found(0, 10), found(1, 10)]) == Accuracy(1.0, 1.0, 1.0)


def test_masks_in_all_of_cocos_forms_are_one(tmp_path: Path) -> None:
    first, second = read(tmp_path, coco()).index["annotations"]
    runs = [4 * 40 + 4, *[10, 30] * 9, 10]
    (third,) = read(tmp_path, masked({"size": list(SIZE), "counts": [*runs, 40 * 48 - sum(runs)]})).index["annotations"]
    assert first["segmentation"] == second["segmentation"] == third["segmentation"]
    assert first["area"] == 100


class Squares:
    """An engine that sees a square in every picture: the votes of its pixels lie in its middle."""

    name = "squares"
    slots = 1

    def __init__(self, side: int) -> None:
        self.side = side

    def run_alone(self, inputs: Any) -> dict[str, Any]:
        height, width = inputs["images"].shape[1:3]
        inside = np.zeros((1, height, width), np.float32)
        offsets = np.zeros((1, 2, height, width), np.float32)
        scale = inputs["sizes"][0, 0] / SIZE[0]
        first, last = round(4 * scale), round((4 + self.side) * scale)
        inside[:, first:last, first:last] = 1.0
        rows, columns = np.mgrid[:height, :width]
        middle = (first + last - 1) / 2
        offsets[0, 0], offsets[0, 1] = middle - rows, middle - columns
        return {"inside": inside, "offsets": offsets}

    run = run_alone

    def give_back(self) -> None: ...

    def close(self) -> None: ...


def test_answers_are_made_as_the_server_makes_them_and_a_worse_network_scores_less(tmp_path: Path) -> None:
    model = unet_tiny()
    annotated = read(tmp_path, coco())
    served = Served(model.input, model.masks, ("blob",))
    before, after = (measure(served, Squares(side), annotated, "") for side in (10, 8))
    assert before.ap == pytest.approx(1.0)
    assert after.ap < before.ap
    with pytest.raises(ExportError, match=r"AP falls by .* allowed is 0\.005.*--accept-loss"):
        judged("int8", before, [before, after], annotated, False, 1.0)
    record = judged("int8", before, [before, after], annotated, True, 1.0)
    assert record["loss_accepted"]
    assert record["int8"] == record["fp32"]
    assert record["fp32"]["ap"] - record["int8 for TensorRT"]["ap"] == record["ap_fell_by"] > 0.005
    assert record["pictures"] == 2
    assert record["annotations_sha256"] == annotated.sha256


@pytest.mark.parametrize(("precision", "fell", "stands"), [("fp16", 0.0009, True), ("fp16", 0.0011, False),
                                                          ("int8", 0.0049, True), ("int8", 0.0051, False)])  # fmt: skip
def test_the_limit_of_each_precision(tmp_path: Path, precision: str, fell: float, stands: bool) -> None:
    annotated = read(tmp_path, coco())
    before, after = Accuracy(0.6, 0.8, 0.7), Accuracy(0.6 - fell, 0.8, 0.7)
    if stands:
        assert not judged(precision, before, [after], annotated, False, 1.0)["loss_accepted"]
    else:
        with pytest.raises(ExportError, match="AP falls"):
            judged(precision, before, [after], annotated, False, 1.0)


def test_where_nothing_was_found_before_nothing_can_be_seen_to_fall(tmp_path: Path) -> None:
    nothing, annotated = Accuracy(0.0, 0.0, 0.0), read(tmp_path, coco())
    with pytest.raises(ExportError, match="AP is 0 in fp32 already"):
        judged("fp16", nothing, [nothing], annotated, False, 1.0)
    assert judged("fp32", nothing, [nothing], annotated, False, 1.0)["ap_fell_by"] == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not json", "cannot be read as JSON"),
        ([], "should have images, annotations and categories"),
        (coco(annotations=[]), "none of them empty"),
        (coco(images=[image(0, "elsewhere.png")]), "holds none of the 1 pictures"),
        (coco(images=[image(i, f"{i}.png") for i in range(9)]), "lacks 7 of 9 pictures"),
        (coco(images=[{"id": 0}]), "no 'file_name'"),
        (coco(images=[{"id": 0, "file_name": "0.png"}]), "no 'height'"),
        (coco(images=["0.png"]), "an entry is of another kind"),
        (coco(annotations=[{"id": 1, "image_id": 0, "category_id": 5}]), "no 'segmentation'"),
        (coco(annotations=[{"id": 1, "image_id": 77, "category_id": 5, "segmentation": []}]), "nothing to find"),
        (
            masked([]),
            "the mask of annotation 31 of --check cannot be read: it is empty; .*leave out what has only a box",
        ),
        (masked([[1.0, 2.0, 3.0, 4.0]]), "the mask of annotation 31"),
        (masked(None), "the mask of annotation 31"),
        (masked({"size": [9, 9], "counts": [81]}), "of another size than its picture, 48 x 40"),
        (masked({"size": list(SIZE), "counts": [5, 6]}), "of another size than its picture"),
        (masked({"size": list(SIZE), "counts": "no run lengths"}), "the mask of annotation 31"),
        (coco(categories=[{"id": 5, "name": "ship"}]), "annotations of ship; the model's classes are blob"),
    ],
)
def test_annotations_that_do_not_fit_are_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence) as refused:
        read(tmp_path, content)
    assert "\n" not in str(refused.value)


def test_pictures_of_another_size_than_their_annotations_are_refused(tmp_path: Path) -> None:
    content = coco()
    content["images"][1]["height"] = 99
    model = unet_tiny()
    with pytest.raises(ExportError, match="its annotations are for"):
        measure(Served(model.input, model.masks, ("blob",)), Squares(10), read(tmp_path, content), "")


def test_without_pycocotools_the_sentence_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ExportError, match="pip install pycocotools"):
        read(tmp_path, coco())
