"""Votes counted for all objects at once: what each object's own pixels say, one object at a time, is the oracle."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.geometry import Frame
from server.masks import CenterOffsetMasks
from server.masks.center_offsets import _group, _vote

SPREAD = 0.25
MASKS = CenterOffsetMasks(min_votes=2, min_area=1, spread=SPREAD)


def noisy_planes(seed: int, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities everywhere around the threshold, and offsets that lead anywhere, beyond the edge too."""
    random = np.random.default_rng(seed)
    inside = random.random(size, np.float32)
    offsets = random.normal(0, 6, (2, *size)).astype(np.float32)
    return inside, offsets


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 40), width=st.integers(1, 40), centres=st.integers(1, 9))
def test_score_and_bounds_are_those_of_each_objects_own_pixels(
    seed: int, height: int, width: int, centres: int
) -> None:
    inside, offsets = noisy_planes(seed, (height, width))
    votes = _vote(inside, offsets, 0.5)
    labels = np.random.default_rng(seed).integers(1, centres + 1, len(votes.pixels)).astype(np.int32)
    objects = _group(votes, labels, SPREAD)
    y, x = np.divmod(votes.pixels, width)
    to_y, to_x = np.divmod(votes.targets, width)
    for label in range(1, labels.max(initial=0) + 1):
        own = labels == label
        if not own.any():
            assert not objects.found[label]
            continue
        assert objects.bounds[label].tolist() == [y[own].min(), x[own].min(), y[own].max() + 1, x[own].max() + 1]
        strong = own & votes.strong
        assert objects.found[label] == strong.any()
        if strong.any():
            variance = to_y[strong].var() + to_x[strong].var()
            agreement = 1 / (1 + variance * np.pi / strong.sum() / SPREAD**2)
            np.testing.assert_allclose(objects.scores[label], votes.probability[strong].mean() * agreement, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 40), width=st.integers(1, 40))
def test_a_pixel_votes_for_the_nearest_place_inside_the_picture(seed: int, height: int, width: int) -> None:
    inside, offsets = noisy_planes(seed, (height, width))
    votes = _vote(inside, offsets, 0.5)
    assert votes.pixels.tolist() == np.flatnonzero(inside > 0.25).tolist()
    for pixel, target in zip(votes.pixels.tolist(), votes.targets.tolist(), strict=True):
        y, x = divmod(pixel, width)
        to_y = min(max(round(y + float(offsets[0, y, x])), 0), height - 1)
        to_x = min(max(round(x + float(offsets[1, y, x])), 0), width - 1)
        assert target == to_y * width + to_x


def test_noise_gives_patches_that_lie_inside_the_picture_and_share_no_pixel() -> None:
    inside, offsets = noisy_planes(1, (60, 80))
    for size in ((60, 80), (45, 61), (120, 160)):
        frame = Frame(size=size, input_size=(60, 80), content=(60, 80))
        painted = np.zeros(size, int)
        for segment in MASKS.decode({"inside": inside, "offsets": offsets}, frame, 0.0):
            patch = segment.patch
            window = painted[patch.y : patch.y + patch.bits.shape[0], patch.x : patch.x + patch.bits.shape[1]]
            assert window.shape == patch.bits.shape
            window += patch.bits
        assert painted.any()
        assert painted.max() == 1
