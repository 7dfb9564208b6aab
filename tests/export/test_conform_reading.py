"""Reading reference cases, matching answers, and the table: none of it needs a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import export.__main__ as command
from export.conform.cases import read_systems
from export.conform.command import chosen
from export.conform.conventions import painted
from export.conform.matching import Detections, agree, box_ious, differ, match
from export.conform.table import Row, exit_code, summary
from export.errors import ExportError
from server.segments import Patch


def write_case(golden: Path, system: str, name: str, **meta: Any) -> np.ndarray:
    """A case with one detection; gives its mask."""
    folder = golden / system
    folder.mkdir(parents=True, exist_ok=True)
    mask = np.random.default_rng(0).random((1, 5, 7)) > 0.5
    tensors: dict[str, np.ndarray] = {
        "sd/a.weight": np.ones((2, 2), np.float32),
        "in/image_u8": np.zeros((5, 7, 3), np.uint8),
        "raw/thing#0.0": np.ones(3, np.float32),
        "raw/empty": np.zeros((0, 4), np.float32),
        "det/boxes": np.ones((1, 4), np.float32),
        "det/masks_packed": np.packbits(mask.reshape(1, -1), axis=1),
    }
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.meta.json").write_text(json.dumps({"det_masks_shape": [1, 5, 7], **meta}))
    return mask


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
        np.array(labels, np.int64),
        np.zeros((len(scores), 1, 1), np.bool_),
    )


# Reading


def test_a_case_gives_weights_picture_raw_tensors_and_masks(tmp_path: Path) -> None:
    mask = write_case(tmp_path, "some_system", "a", ori_shape=[50, 70])
    (group,) = read_systems(tmp_path)["some_system"]
    (case,) = group.cases
    assert list(case.state()) == ["a.weight"]
    assert case.pictures["image_u8"].shape == (5, 7, 3)
    assert list(case.tensors("raw")) == ["thing#0.0"]  # empty ones are left out
    assert (case.masks() == mask).all()
    assert case.original_size == (50, 70)
    assert case.padded_to is None
    assert case.has("sd/a.weight")
    assert not case.has("sd/b.weight")


def test_without_a_stated_size_the_original_is_that_of_the_masks(tmp_path: Path) -> None:
    write_case(tmp_path, "some_system", "a")
    assert read_systems(tmp_path)["some_system"][0].cases[0].original_size == (5, 7)


def test_mates_make_one_group_in_the_order_of_their_rows(tmp_path: Path) -> None:
    write_case(tmp_path, "s", "a")
    write_case(tmp_path, "s", "x", batch_mate="y", batch_row=1, padded_to=[64, 96])
    write_case(tmp_path, "s", "y", batch_mate="x", batch_row=0, padded_to=[64, 96])
    groups = read_systems(tmp_path)["s"]
    assert [group.name for group in groups] == ["a", "y+x"]
    assert groups[1].cases[0].padded_to == (64, 96)


def test_a_case_whose_mate_is_absent_stands_alone(tmp_path: Path) -> None:
    write_case(tmp_path, "s", "x", batch_mate="y", padded_to=[64, 96])
    assert [group.name for group in read_systems(tmp_path)["s"]] == ["x"]


def test_folders_that_hold_something_else_are_no_systems(tmp_path: Path) -> None:
    write_case(tmp_path, "s", "a")
    (tmp_path / "_keys").mkdir()
    (tmp_path / "empty").mkdir()
    assert list(read_systems(tmp_path)) == ["s"]


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not a folder"):
        read_systems(tmp_path / "none")
    with pytest.raises(ExportError, match="holds no"):
        read_systems(tmp_path)
    write_case(tmp_path, "s", "a")
    (tmp_path / "s" / "a.meta.json").write_text("{")
    with pytest.raises(ExportError, match="not JSON"):
        read_systems(tmp_path)
    (tmp_path / "s" / "a.meta.json").unlink()
    with pytest.raises(ExportError, match="is missing"):
        read_systems(tmp_path)


def test_only_takes_systems_cases_and_stars(tmp_path: Path) -> None:
    for system, name, meta in (
        ("one", "a", {}),
        ("one", "c1", {"batch_mate": "c2"}),
        ("one", "c2", {"batch_mate": "c1"}),
        ("two", "a", {}),
    ):
        write_case(tmp_path, system, name, **meta)
    systems = read_systems(tmp_path)

    def names(*only: str) -> list[str]:
        return [f"{group.system}/{group.name}" for group in chosen(systems, only)]

    assert names() == ["one/a", "one/c1+c2", "two/a"]
    assert names("two") == ["two/a"]
    assert names("one/c2") == ["one/c1+c2"]  # a case brings its mate
    assert names("*/a") == ["one/a", "two/a"]
    assert names("two", "one/a") == ["one/a", "two/a"]
    with pytest.raises(ExportError, match="--only three fits none"):
        names("three")


# Matching


@given(st.permutations(range(5)))
def test_detections_match_in_any_order(order: list[int]) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (5, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 20, (5, 2))])
    wanted = found(boxes.tolist(), [0.9, 0.8, 0.7, 0.6, 0.5], [0, 1, 0, 1, 2])
    other = Detections(wanted.boxes[order], wanted.scores[order], wanted.labels[order], wanted.masks[order])
    result = match(wanted, other)
    assert result.share == 1.0
    assert all(order[column] == row for row, column in result.pairs)


def test_another_label_box_or_score_has_no_partner() -> None:
    box = [10.0, 10.0, 30.0, 30.0]
    wanted = found([box], [0.5], [1])
    assert match(wanted, found([box], [0.5009], [1])).share == 1.0
    assert match(wanted, found([box], [0.502], [1])).share == 0.0
    assert match(wanted, found([box], [0.5], [2])).share == 0.0
    assert match(wanted, found([[10, 10, 30, 30.3]], [0.5], [1])).share == 0.0
    assert match(wanted, found([[10, 10, 30, 30.1]], [0.5], [1])).share == 1.0


def test_what_was_not_asked_for_counts_as_well() -> None:
    box = [10.0, 10.0, 30.0, 30.0]
    assert match(found([box], [0.5], [1]), found([box, box], [0.5, 0.5], [1, 1])).share == 0.5
    assert match(found([], [], []), found([box], [0.5], [1])).share == 0.0
    assert match(found([], [], []), found([], [], [])).share == 1.0


def test_boxes_without_area_are_the_same_where_they_lie_in_the_same_place() -> None:
    flat = np.array([[5.0, 5.0, 5.0, 9.0]])
    assert box_ious(flat, flat) == 1.0
    assert box_ious(flat, flat + 1) == 0.0


def test_masks_agree_by_what_they_cover() -> None:
    wanted = np.zeros((3, 20, 20), np.bool_)
    wanted[0, :10] = True
    other = wanted.copy()
    other[0, 9, :3] = False  # 3 pixels of 200
    result = agree(wanted, other, [(0, 0), (1, 1)])
    assert result.bad == 0
    assert result.flipped == 3
    assert result.worst == pytest.approx(197 / 200)
    assert result.mean == pytest.approx((197 / 200 + 1) / 2)  # two empty masks agree
    other[2, 0, :5] = True  # five pixels where there should be none
    assert agree(wanted, other, [(2, 2)]).bad == 1


def test_raw_tensors_differ_by_their_own_deviation() -> None:
    wanted = np.array([0.0, 100.0], np.float32)  # std 50
    assert differ(wanted + np.float32(0.009), wanted, 2e-4).of_tolerance <= 1
    assert differ(wanted + np.float32(0.011), wanted, 2e-4).of_tolerance > 1
    assert differ(np.array([0.0, 100.1], np.float32), wanted, 2e-4).of_tolerance <= 1  # within a thousandth
    assert differ(wanted[:1], wanted, 2e-4).of_tolerance == np.inf
    assert differ(np.array([0.0, np.nan]), wanted, 2e-4).of_tolerance == np.inf


def test_a_patch_is_painted_where_it_lies() -> None:
    frame = painted(Patch(1, 2, np.ones((2, 3), np.bool_)), (4, 6))
    assert frame.sum() == 6
    assert frame[1:3, 2:5].all()


# The command


def test_rows_that_did_not_run_do_not_fail() -> None:
    rows = [Row("a", "a", "x", "", "pass"), Row("b", "a", "", "", "not run")]
    assert exit_code(rows) == 0
    said = summary(rows, 1.0, 2.0)
    assert "1 of 1 rows of 1 systems pass" in said
    assert "not run: 1 systems (b)" in said
    assert exit_code([*rows, Row("a", "a", "y", "", "FAIL")]) == 1


def test_an_unknown_system_is_listed_and_does_not_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path, "somebodys_network", "a")
    assert command.main(["conform", "--golden", str(tmp_path), "--jobs", "1"]) == 0
    assert "not known to this version and not run: 1 systems (somebodys_network)" in capsys.readouterr().out


def test_a_question_that_makes_no_sense_is_another_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["conform", "--golden", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("not run: --golden")


def test_a_broken_case_of_a_known_system_fails_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path, "torchvision_maskrcnn_x", "a")
    write_case(tmp_path, "unknown", "a")
    (tmp_path / "conventions_mask_paste").mkdir()
    (tmp_path / "conventions_mask_paste" / "a.safetensors").write_bytes(b"\0" * 9)
    (tmp_path / "conventions_mask_paste" / "a.meta.json").write_text('{"HW": [4, 4]}')
    assert command.main(["conform", "--golden", str(tmp_path), "--jobs", "1"]) == 1
    said = capsys.readouterr().out
    assert "has no 'config'" in said
    assert "is not a safetensors file" in said
    assert "failed: conventions_mask_paste/a, torchvision_maskrcnn_x/a" in said
