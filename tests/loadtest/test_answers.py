"""Right and wrong answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.answers import Exam, WrongAnswer, counts_to_runs, take_apart
from loadtest.errors import CannotRun
from tests.loadtest.fake import INSTANCES, answer, problem


def exam(check: Any = "sample") -> Exam:
    made = Exam(check, np.random.default_rng(1))
    made.learn(0, answer(INSTANCES))
    return made


def changed(**changes: Any) -> bytes:
    """The fake's answer, its second instance changed."""
    return answer([INSTANCES[0], INSTANCES[1] | changes])


def runs_to_counts(runs: list[int]) -> str:
    """COCO's compression, written from its C source: what `counts_to_runs` undoes."""
    text = ""
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            text += chr(bits + 0x20 * more + 48)
    return text


@given(st.lists(st.integers(0, 60_000_000), max_size=30))
def test_run_lengths_survive_compression(runs: list[int]) -> None:
    assert counts_to_runs(runs_to_counts(runs)).tolist() == runs


def test_run_lengths_agree_with_pycocotools() -> None:
    mask_module = pytest.importorskip("pycocotools.mask")
    pixels = np.asfortranarray(np.random.default_rng(3).random((97, 61)) < 0.2, np.uint8)
    encoded = mask_module.encode(pixels)
    runs = counts_to_runs(encoded["counts"].decode())
    flat = np.repeat(np.arange(len(runs)) % 2, runs)
    assert np.array_equal(flat.reshape(61, 97).T, pixels)


def test_an_answer_is_taken_apart() -> None:
    content = take_apart(answer(INSTANCES))
    assert (content.count, content.model, content.batch_size) == (2, "fake/1", 1)
    assert content.timing_ms["inference"] == 2.0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{not JSON", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "neither 'instances' nor"),
        (b'{"instances": [1], "image": {"width": 2, "height": 2}}', "form is unknown"),
        (b'{"instances": []}', "form is unknown"),
        (changed(area=3), "its area says 3"),
        (changed(segmentation={"size": [2, 3], "counts": "022"}), "size"),
        (changed(segmentation={"size": [2, 2], "counts": "02"}), "sum to 2 of 4"),
        (changed(segmentation={"size": [2, 2], "counts": "0T"}), "end within a number"),
        (changed(segmentation={"size": [2, 2], "counts": "0 2"}), "foreign character"),
        (changed(segmentation={"size": [2, 2], "counts": [0, 2, 3]}), "sum to 5"),
    ],
)
def test_a_wrong_answer_is_told_from_a_right_one(body: bytes, says: str) -> None:
    with pytest.raises(WrongAnswer, match=says):
        take_apart(body)
    assert exam("all").judge(1, 0, 200, body).kind == "bad_answer"


@pytest.mark.parametrize(
    "mask", [{"size": [2, 2], "counts": [0, 2, 2]}, [{"exterior": [[0, 0]], "holes": []}], None, "absent"]
)
def test_the_other_formats_of_masks_are_no_mistake(mask: Any) -> None:
    instance = INSTANCES[1] | {"segmentation": mask}
    if mask == "absent":
        del instance["segmentation"]
    assert take_apart(answer([INSTANCES[0], instance])).count == 2


def test_panoptic_answers_are_counted_by_their_segments() -> None:
    body = b'{"png": "", "segments_info": [{"id": 1, "category_id": 3}]}'
    assert take_apart(body).count == 1


@pytest.mark.parametrize("check", ["sample", "all"])
def test_another_number_of_instances_is_wrong(check: str) -> None:
    verdict = exam(check).judge(1, 0, 200, answer(INSTANCES[:1]))
    assert (verdict.kind, verdict.why) == ("wrong_count", "1 instances; alone it had 2")


def test_a_count_is_not_fooled_by_names() -> None:
    named = [instance | {"category": '"category_id":'} for instance in INSTANCES]
    assert exam().judge(1, 0, 200, answer(named)).kind == "ok"


def test_what_the_quick_look_lets_pass_is_found_after_the_run() -> None:
    sampled = exam()
    assert sampled.judge(7, 0, 200, changed(area=3)).kind == "ok"
    assert sampled.judge(8, 0, 200, answer(INSTANCES)).kind == "ok"
    wrong, right = sampled.review()
    assert [(row, verdict.kind) for row, verdict in wrong.items()] == [(7, "bad_answer")]
    assert list(right) == [8]


def test_the_sample_is_bounded_and_reaches_to_the_end() -> None:
    sampled = exam()
    for row in range(5000):
        sampled.judge(row, 0, 200, answer(INSTANCES))
    _, right = sampled.review()
    assert len(right) == 200
    assert 2000 < np.mean(list(right)) < 3000


def test_without_a_check_the_status_is_enough() -> None:
    assert exam("none").judge(1, 0, 200, b"anything").kind == "ok"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (503, problem(503, "overloaded"), "overloaded"),
        (500, b"<h1>nginx</h1>", "http_500"),
        (500, b'"text"', "http_500"),
        (502, json.dumps({"code": "not a code!"}).encode(), "http_502"),
        (204, b"", "http_204"),
    ],
)
def test_an_error_goes_by_its_code_or_its_status(status: int, body: bytes, kind: str) -> None:
    assert exam().judge(1, 0, status, body).kind == kind


def test_a_wrong_solo_answer_is_nothing_to_learn_from() -> None:
    with pytest.raises(CannotRun, match="--check none"):
        exam().learn(0, changed(area=3))
