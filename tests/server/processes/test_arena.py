"""Places never overlap, and everything that was given comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.processes.arena import ALIGNMENT, KEPT_BYTES, Arena, Window
from server.shared_file import shared_file


class Places(RuleBasedStateMachine):
    """Any order of taking and giving back."""

    @initialize(blocks=st.integers(1, 40))
    def begin(self, blocks: int) -> None:
        self.capacity = blocks * ALIGNMENT
        self.arena = Arena(self.capacity)
        self.held: dict[int, int] = {}

    @rule(size=st.integers(0, 12 * ALIGNMENT))
    def take(self, size: int) -> None:
        offset = self.arena.allocate(size)
        if offset is None:
            # nothing that large is free, between any two places or at the ends
            edges = sorted((at, at + -(-max(room, 1) // ALIGNMENT) * ALIGNMENT) for at, room in self.held.items())
            ends = [0, *(end for _, end in edges)]
            begins = [*(begin for begin, _ in edges), self.capacity]
            assert all(begin - end < max(size, 1) for end, begin in zip(ends, begins, strict=True))
        else:
            assert offset % ALIGNMENT == 0
            assert offset >= 0
            assert offset + size <= self.capacity
            assert all(offset + max(size, 1) <= at or at + max(room, 1) <= offset for at, room in self.held.items())
            self.held[offset] = size

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        if self.held:
            offset = data.draw(st.sampled_from(sorted(self.held)))
            del self.held[offset]
            self.arena.free(offset)

    @invariant()
    def an_empty_arena_is_whole(self) -> None:
        if hasattr(self, "arena") and not self.held:
            assert self.arena.empty
            offset = self.arena.allocate(self.capacity)
            assert offset == 0
            self.arena.free(0)


TestPlaces = Places.TestCase


def test_the_example_of_the_module() -> None:
    arena = Arena(1000)
    assert arena.allocate(100) == 0
    assert arena.allocate(100) == 128
    arena.free(0)
    assert arena.allocate(50) == 0
    assert arena.used == 64 + 128


def test_a_place_is_given_back_once() -> None:
    arena = Arena(1000)
    arena.allocate(1)
    arena.free(0)
    with pytest.raises(KeyError):
        arena.free(0)


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = shared_file("test", 3 * KEPT_BYTES)
    yield descriptor
    os.close(descriptor)


def test_two_windows_show_the_same_bytes_and_one_of_them_cannot_write(file: int) -> None:
    ours, theirs = Window(file, writable=True), Window(file, writable=False)
    ours.view(64, (2, 3), np.float32)[:] = np.arange(6).reshape(2, 3)
    seen = theirs.view(64, (2, 3), np.float32)
    assert seen.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="read-only"):
        seen[0, 0] = 1


@given(offset=st.integers(-10, 2**40), shape=st.lists(st.integers(0, 2**31), max_size=3))
def test_a_view_never_reaches_outside(offset: int, shape: list[int]) -> None:
    descriptor = shared_file("test", 1000)
    window = Window(descriptor, writable=True)
    inside = offset >= 0 and offset + 4 * int(np.prod(shape, dtype=object)) <= 1000
    if inside:
        assert window.view(offset, shape, np.float32).shape == tuple(shape)
    else:
        with pytest.raises(ValueError, match=r"outside|negative|larger|overflow"):
            window.view(offset, shape, np.float32)
    os.close(descriptor)


def test_a_view_outlives_its_window_and_its_file(file: int) -> None:
    view = Window(file, writable=True).view(0, (8,), np.uint8)
    view[:] = 7
    assert view.tolist() == [7] * 8


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux gives pages back")
def test_an_empty_arena_keeps_little_memory(file: int) -> None:
    arena, window = Arena(3 * KEPT_BYTES), Window(file, writable=True)
    place = arena.allocate(2 * KEPT_BYTES)
    assert place == 0
    window.view(0, (2 * KEPT_BYTES,), np.uint8)[:] = 1
    assert os.fstat(file).st_blocks * 512 >= 2 * KEPT_BYTES
    assert arena.settle() is None
    arena.free(0)
    window.give_back(arena.settle())
    assert os.fstat(file).st_blocks * 512 <= KEPT_BYTES + 4096
    assert arena.settle() is None


def test_a_shared_file_has_no_name_and_takes_no_memory_until_it_is_written() -> None:
    before = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    descriptor = shared_file("test", 2**40)
    assert os.fstat(descriptor).st_size == 2**40
    assert os.fstat(descriptor).st_blocks == 0
    assert (os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []) == before
    os.close(descriptor)
