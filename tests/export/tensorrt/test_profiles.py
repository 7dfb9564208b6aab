"""Profiles hold every size that the manifest's input can give, and little else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import ExportError
from export.tensorrt.profiles import profiles_for, ranges_of, read_best
from server.preprocess import AnyInput, FixedInput, InputSpec, ShortestEdgeInput

SIDES = st.integers(1, 5000)
MULTIPLES = st.sampled_from([1, 16, 32, 64])
RULES = st.builds(
    ShortestEdgeInput,
    short_side=st.integers(1, 900),
    long_side=st.integers(900, 1500),
    multiple=MULTIPLES,
    rounding=st.sampled_from(["floor", "nearest", "short_first"]),
)
FREE = st.builds(
    lambda multiple, high, wide, short, scale: InputSpec(
        multiple=multiple, max_size=(high * multiple, wide * multiple), short_side=short, max_scale=scale
    ),
    MULTIPLES,
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 800),
    st.floats(1, 4),
)
FIXED = st.builds(FixedInput, size=st.tuples(st.integers(1, 2000), st.integers(1, 2000)), resize=st.just("stretch"))
COCO = ShortestEdgeInput(short_side=800, long_side=1333, multiple=32)
NUCLEI = InputSpec(multiple=16, max_size=(1408, 1408), short_side=512, max_scale=2.0)


@given(st.one_of(RULES, FREE, FIXED), SIDES, SIDES)
def test_every_picture_comes_to_lie_inside_some_profile(spec: AnyInput, height: int, width: int) -> None:
    size = spec.frame((height, width)).input_size
    assert any(
        all(low <= side <= high for low, side, high in zip(smallest, size, largest, strict=True))
        for smallest, largest in ranges_of(spec)
    )


@given(st.one_of(RULES, FREE, FIXED), st.integers(1, 16))
def test_the_best_shape_lies_between_the_smallest_and_the_largest(spec: AnyInput, max_batch: int) -> None:
    for profile in profiles_for(spec, ["images", "sizes"], max_batch):
        for name in ("images", "sizes"):
            low, best, high = profile.smallest[name], profile.best[name], profile.largest[name]
            assert all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))
        assert profile.smallest["images"][0] == 1
        assert profile.largest["images"][0] == max_batch == profile.largest["sizes"][0]


def test_lying_and_standing_pictures_have_a_profile_each() -> None:
    lying, standing = profiles_for(COCO, ["images", "sizes"], 8)
    assert (lying.smallest["images"], lying.best["images"], lying.largest["images"]) == (
        [1, 32, 32, 3],
        [8, 800, 1088, 3],
        [8, 800, 1344, 3],
    )
    assert (standing.best["images"], standing.largest["images"]) == ([8, 1088, 800, 3], [8, 1344, 800, 3])
    assert standing.largest["sizes"] == [8, 2]


def test_a_square_rule_and_a_fixed_size_need_one() -> None:
    assert len(ranges_of(ShortestEdgeInput(short_side=512, long_side=512, multiple=32))) == 1
    (profile,) = profiles_for(FixedInput(size=(100, 200), resize="stretch"), ["images"], 2)
    assert profile.smallest == {"images": [1, 100, 200, 3]}
    assert profile.best == profile.largest == {"images": [2, 100, 200, 3]}


def test_the_best_shape_can_be_told() -> None:
    (profile,) = profiles_for(NUCLEI, ["images"], 8, read_best("2x512x640"))
    assert profile.best == {"images": [2, 512, 640, 3]}
    lying, standing = profiles_for(COCO, ["images"], 8, read_best("800x1216"))
    assert lying.best == {"images": [8, 800, 1216, 3]}
    assert standing.best == {"images": [8, 1088, 800, 3]}  # no such picture stands


@pytest.mark.parametrize(
    ("best", "sentence"),
    [
        (
            "1344x1344",
            "--best 1344x1344 cannot be: this model takes 32x32 to 800x1344 or 32x32 to 1344x800 in multiples of 32",
        ),
        ("100x100", "in multiples of 32"),
        ("9x800x1088", "asks for a batch of 9; the engine takes at most 8"),
        ("big", "should be height x width or batch x height x width"),
        ("0x32x32", "should be height x width"),
    ],
)
def test_a_best_shape_that_cannot_be_is_refused(best: str, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        profiles_for(COCO, ["images"], 8, read_best(best))
