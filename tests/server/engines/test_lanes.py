"""Lanes: where tensors lie, and what is freed when something fails on the way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engines.lanes import ALIGNMENT, Lane, Lanes, bytes_of, lay_out
from server.errors import DeviceFull, ShapeRefused
from tests.server.engines.memory import MemoryDevice

SPECS = st.dictionaries(
    st.text(min_size=1, max_size=3),
    st.tuples(st.sampled_from([np.dtype(np.uint8), np.dtype(np.float32)]), st.lists(st.integers(0, 9)).map(tuple)),
    max_size=5,
)


@settings(max_examples=30)
@given(SPECS)
def test_tensors_lie_one_after_the_other_and_apart(specs: dict) -> None:
    offsets, end = lay_out(specs)
    begins = [offsets[name] for name in specs]
    ends = [offsets[name] + bytes_of(spec) for name, spec in specs.items()]
    assert all(begin % ALIGNMENT == 0 for begin in begins)
    assert all(before <= after for before, after in zip(ends, begins[1:], strict=False))
    assert end == (ends[-1] if ends else 0)


def test_more_than_the_lane_was_made_for_is_refused() -> None:
    device = MemoryDevice()
    lane = Lane(device, 100, 0)
    with pytest.raises(ShapeRefused, match="take 101 bytes, the engine was opened for 100"):
        lane.send({"images": np.zeros(101, np.uint8)})
    assert not device.calls["copy_in"]
    lane.close()
    assert device.empty


@pytest.mark.parametrize("room", [0, 100, 250, 450, 750])
def test_a_lane_that_finds_no_room_leaves_nothing_behind(room: int) -> None:
    device = MemoryDevice(room=room)
    with pytest.raises(DeviceFull):
        Lanes(2, lambda: Lane(device, 100, 100))
    assert device.empty
    assert device.room == room


def test_outputs_grow_and_never_shrink() -> None:
    device = MemoryDevice()
    lane = Lane(device, 1, 10)
    lane.room_for_outputs(500)
    address = lane.outputs.address
    lane.room_for_outputs(20)
    assert (lane.outputs.address, lane.outputs.size) == (address, 500)
    lane.close()
    assert device.empty
