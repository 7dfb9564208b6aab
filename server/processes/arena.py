"""Places in a file in memory that two processes share.

One side owns the `Arena`, which knows what is free; both sides have a `Window` on the bytes.

    arena = Arena(1000)
    arena.allocate(100)   0
    arena.allocate(100)   128      places begin at multiples of 64
    arena.free(0)
    arena.allocate(50)    0        the first hole that is large enough
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

ALIGNMENT = 64  # bytes: a cache line, and enough for every dtype
KEPT_BYTES = 32 * 2**20  # of an empty arena that stay in memory; what was touched beyond goes back to the system


class Arena:
    """First fit over `capacity` bytes. Knows numbers only, and is used by one thread."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.highest = 0  # end of the furthest place ever given, until `settle`
        self._holes: list[tuple[int, int]] = [(0, capacity)]  # (offset, size), by offset, never two that touch
        self._places: dict[int, int] = {}  # offset -> size

    @property
    def empty(self) -> bool:
        return not self._places

    @property
    def used(self) -> int:
        """Bytes, with what aligning them costs."""
        return sum(self._places.values())

    def allocate(self, size: int) -> int | None:
        """The offset of a place of `size` bytes, or None when no hole is large enough."""
        needed = max(1, -(-size // ALIGNMENT)) * ALIGNMENT
        for number, (offset, room) in enumerate(self._holes):
            if room >= needed:
                if room == needed:
                    del self._holes[number]
                else:
                    self._holes[number] = (offset + needed, room - needed)
                self._places[offset] = needed
                self.highest = max(self.highest, offset + needed)
                return offset
        return None

    def free(self, offset: int) -> None:
        """Take a place back; holes that touch become one."""
        size = self._places.pop(offset)
        number = 0
        while number < len(self._holes) and self._holes[number][0] < offset:
            number += 1
        self._holes.insert(number, (offset, size))
        for left in (number, number - 1):
            if 0 <= left < len(self._holes) - 1:
                (begin, room), (after, more) = self._holes[left : left + 2]
                if begin + room == after:
                    self._holes[left : left + 2] = [(begin, room + more)]

    def settle(self) -> tuple[int, int] | None:
        """(offset, size) of memory to give back: what an empty arena once touched beyond `KEPT_BYTES`."""
        if self._places or self.highest <= KEPT_BYTES:
            return None
        beyond, self.highest = self.highest - KEPT_BYTES, KEPT_BYTES
        return KEPT_BYTES, beyond


class Window:
    """The bytes of a shared file. The mapping lives as long as the window or any view of it.

    Args:
        descriptor: stays the caller's.
    """

    def __init__(self, descriptor: int, *, writable: bool) -> None:
        self.size = os.fstat(descriptor).st_size
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map = mmap.mmap(descriptor, self.size, access=access)

    def view(self, offset: int, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array at `offset`, no copy.

        Raises:
            ValueError: it reaches outside the file.
        """
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        if offset < 0 or count < 0 or offset + count * kind.itemsize > self.size:
            raise ValueError(f"{count} x {kind} at {offset} lies outside a window of {self.size} bytes")
        return np.frombuffer(self._map, kind, count, offset).reshape(shape)

    def give_back(self, place: tuple[int, int] | None) -> None:
        """Return a range of pages to the system, where it knows how; they read as zero from then on."""
        if place is not None and hasattr(mmap, "MADV_REMOVE"):
            offset = -(-place[0] // mmap.PAGESIZE) * mmap.PAGESIZE
            size = (sum(place) - offset) // mmap.PAGESIZE * mmap.PAGESIZE
            if size > 0:
                self._map.madvise(mmap.MADV_REMOVE, offset, size)
