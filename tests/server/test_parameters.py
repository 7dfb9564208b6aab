"""Query parameters: taken, or refused by name and range."""

from __future__ import annotations

import pytest

from server.errors import BadParameter
from server.formats import FORMATS
from server.manifest import ClassName
from server.parameters import Parameters, chosen_labels, parse_parameters

CLASSES = [ClassName(id=3, name="cell"), ClassName(id=7, name="debris"), ClassName(id=9, name="3")]


def test_what_is_not_given_stays_open() -> None:
    assert parse_parameters([]) == Parameters()


def test_everything_at_once() -> None:
    items = [("score_threshold", "0.25"), ("max_instances", "7"), ("classes", "cell, debris"), ("classes", "9")]
    parsed = parse_parameters([*items, ("masks", "none"), ("timeout_ms", "1500"), ("priority", "3")])
    assert parsed == Parameters(
        score_threshold=0.25,
        max_instances=7,
        classes=["cell", "debris", "9"],
        masks="none",
        timeout_ms=1500,
        priority=3,
    )


@pytest.mark.parametrize("text", ["0", "1", "0.5", "1e-3"])
def test_thresholds_at_their_bounds_are_taken(text: str) -> None:
    assert parse_parameters([("score_threshold", text)]).score_threshold == float(text)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("score_threshold", "-0.01", "0.0 to 1.0"),
        ("score_threshold", "1.01", "0.0 to 1.0"),
        ("score_threshold", "nan", "0.0 to 1.0"),
        ("score_threshold", "inf", "0.0 to 1.0"),
        ("score_threshold", "x", "0.0 to 1.0"),
        ("score_threshold", "", "0.0 to 1.0"),
        ("max_instances", "0", "1 to 100000"),
        ("max_instances", "-1", "1 to 100000"),
        ("max_instances", "1000000000", "1 to 100000"),
        ("max_instances", "1.5", "whole number"),
        ("masks", "RLE", "rle, rle_counts, polygons, png, none"),
        ("timeout_ms", "0", "above 0"),
        ("timeout_ms", "600001", "600000"),
        ("priority", "10", "0 to 9"),
        ("priority", "-1", "0 to 9"),
        ("scorethreshold", "0.5", "not a parameter"),
    ],
)
def test_anything_else_is_refused_by_name_and_range(name: str, text: str, says: str) -> None:
    with pytest.raises(BadParameter, match=says) as caught:
        parse_parameters([(name, text)])
    assert f"'{name}'" in str(caught.value)


def test_a_parameter_given_twice_is_not_silently_dropped() -> None:
    with pytest.raises(BadParameter, match="twice"):
        parse_parameters([("masks", "rle"), ("masks", "none")])


def test_classes_go_by_name_and_by_id_and_a_name_wins() -> None:
    assert chosen_labels(["cell", "7"], CLASSES) == {0, 1}
    assert chosen_labels(["3"], CLASSES) == {2}
    assert chosen_labels(None, CLASSES) is None


@pytest.mark.parametrize("wanted", ["nucleus", "", "4"])
def test_an_unknown_class_is_refused_with_the_known_ones(wanted: str) -> None:
    with pytest.raises(BadParameter, match="cell, debris, 3"):
        chosen_labels([wanted], CLASSES)


def test_the_parameter_knows_exactly_the_formats_there_are() -> None:
    for name in FORMATS:
        assert parse_parameters([("masks", name)]).masks == name
    assert set(FORMATS) == set(Parameters.model_json_schema()["properties"]["masks"]["enum"])
