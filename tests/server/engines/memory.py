"""A GPU of plain memory: what `server.engines.device.Device` promises, kept by the host, and as late as may be.

What a stream is given waits until somebody synchronises it. A runner that reads an answer before it has waited for it,
or hands memory to another run too early, gets it wrong here as it would on a GPU. Everything that is taken is counted,
so that a test can ask whether it was given back.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from server.engines.device import Properties
from server.errors import DeviceFault, DeviceFull

H200 = Properties("NVIDIA H200", "9.0", "580.65.06", 150_000_000_000)


class MemoryDevice:
    """
    Args:
        room: bytes that it has.
    """

    def __init__(self, room: int = 1 << 32, properties: Properties = H200) -> None:
        self.properties = properties
        self.room = room
        self.blocks: dict[int, NDArray[np.uint8]] = {}  # on the device
        self.pinned: dict[int, NDArray[np.uint8]] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.calls: Counter[str] = Counter()
        self.failing: str | None = None  # the method that fails next, and all after it: a fault stays
        self._faulty = False
        self._lock = threading.Lock()
        self._streams_opened = 0

    def allocate(self, size: int) -> int:
        self._called("allocate")
        self._take(size)
        block = _aligned(size)
        self.blocks[block.ctypes.data] = block
        return block.ctypes.data

    def free(self, address: int) -> None:
        self._called("free")
        self.room += self.blocks.pop(address).nbytes

    def pin(self, size: int) -> NDArray[np.uint8]:
        self._called("pin")
        self._take(size)
        host = _aligned(size)
        self.pinned[host.ctypes.data] = host
        return host

    def unpin(self, host: NDArray[np.uint8]) -> None:
        self._called("unpin")
        self.room += self.pinned.pop(host.ctypes.data).nbytes

    def open_stream(self) -> int:
        self._called("open_stream")
        with self._lock:
            self._streams_opened += 1
            self.streams[self._streams_opened] = []
            return self._streams_opened

    def close_stream(self, stream: int) -> None:
        self._called("close_stream")
        del self.streams[stream]

    def copy_in(self, address: int, host: NDArray[np.uint8], stream: int) -> None:
        self._called("copy_in")
        assert self._is_pinned(host), "a copy that overlaps wants pinned memory"
        self.streams[stream].append(lambda: _move(address, host.ctypes.data, host.nbytes))

    def copy_out(self, host: NDArray[np.uint8], address: int, stream: int) -> None:
        self._called("copy_out")
        assert self._is_pinned(host), "a copy that overlaps wants pinned memory"
        self.streams[stream].append(lambda: _move(host.ctypes.data, address, host.nbytes))

    def synchronise(self, stream: int) -> None:
        self._called("synchronise")
        work = self.streams[stream]
        while work:
            work.pop(0)()

    def holds(self, address: int, size: int) -> bool:
        """Whether so many bytes from there are of one block on the device."""
        return any(begin <= address and address + size <= begin + block.nbytes for begin, block in self.blocks.items())

    @property
    def empty(self) -> bool:
        """Whether everything was given back."""
        return not (self.blocks or self.pinned or self.streams)

    def _is_pinned(self, host: NDArray[np.uint8]) -> bool:
        at = host.ctypes.data
        return any(begin <= at and at + host.nbytes <= begin + whole.nbytes for begin, whole in self.pinned.items())

    def _take(self, size: int) -> None:
        if size > self.room:
            raise DeviceFull("cudaMalloc: the device has no memory left for this")
        self.room -= size

    def _called(self, method: str) -> None:
        with self._lock:
            self.calls[method] += 1
            self._faulty = self._faulty or method == self.failing
        if self._faulty:
            raise DeviceFault(f"{method}: cudaErrorIllegalAddress (700)")


def _aligned(size: int) -> NDArray[np.uint8]:
    """Memory from cudaMalloc begins at a multiple of 256; full of 0xA5, so that nobody takes it for an answer."""
    whole = np.full(size + 256, 0xA5, np.uint8)
    begin = -whole.ctypes.data % 256
    return whole[begin : begin + size]


def _move(to: int, source: int, size: int) -> None:
    ctypes.memmove(to, source, size)
