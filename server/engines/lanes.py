"""Lanes of a GPU: a stream each, with the memory of the one run that is on it.

    with lanes.take() as lane:
        addresses = lane.send({"images": images})       # pinned, and on their way to the device
        ...                                              # whatever computes, on lane.stream
        outputs = lane.fetch(specs, addresses_of_them)   # back, waited for, copied out of the pinned memory

With two lanes one run's copies go on while another computes. Memory is taken once, for the largest run, and later runs
take none. What `fetch` returns is memory of its own, that no later run writes to: answers live until their masks are
made, which may be several runs later, and one more copy in the host's memory (10 GB/s and more) costs less than pinned
memory that waits for the slowest reader.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.engines import Tensors
from server.engines.device import Device
from server.errors import EngineError, ShapeRefused

ALIGNMENT = 256  # bytes: of every tensor in its block

Spec = tuple[np.dtype[Any], tuple[int, ...]]  # dtype and shape of a tensor


def bytes_of(spec: Spec) -> int:
    dtype, shape = spec
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def lay_out(specs: Mapping[str, Spec]) -> tuple[dict[str, int], int]:
    """Where each tensor lies when they lie one after the other, and the bytes of all."""
    offsets: dict[str, int] = {}
    end = 0
    for name, spec in specs.items():
        offsets[name] = -(-end // ALIGNMENT) * ALIGNMENT
        end = offsets[name] + bytes_of(spec)
    return offsets, end


class Block:
    """Device memory with as much pinned host memory beside it; a tensor lies in both at the same place.

    Args:
        size: bytes.
    """

    def __init__(self, device: Device, size: int) -> None:
        self._device = device
        self.size = size
        self.address = device.allocate(size)
        try:
            self.host = device.pin(size)
        except EngineError:
            device.free(self.address)
            raise

    def free(self) -> None:
        self._device.free(self.address)
        self._device.unpin(self.host)

    def places(self, specs: Mapping[str, Spec]) -> dict[str, int]:
        """An offset for each tensor.

        Raises:
            ShapeRefused: they are more than the block holds.
        """
        offsets, end = lay_out(specs)
        if end > self.size:
            raise ShapeRefused(f"these tensors take {end} bytes, the engine was opened for {self.size}")
        return offsets


class Lane:
    """One stream and the blocks of the run on it.

    Args:
        inputs, outputs: bytes of the largest run.
    """

    def __init__(self, device: Device, inputs: int, outputs: int) -> None:
        self._device = device
        self._owned = contextlib.ExitStack()
        try:
            self.stream = device.open_stream()
            self._owned.callback(device.close_stream, self.stream)
            self.inputs = Block(device, inputs)
            self._owned.callback(lambda: self.inputs.free())
            self.outputs = Block(device, outputs)
            self._owned.callback(lambda: self.outputs.free())
        except EngineError:
            self._owned.close()
            raise

    def close(self) -> None:
        self._owned.close()

    def own_outputs(self, size: int) -> Block:
        """A block besides, that stays where it is until the lane is closed."""
        block = Block(self._device, size)
        self._owned.callback(block.free)
        return block

    def room_for_outputs(self, size: int) -> None:
        """See to it that `outputs` holds so many bytes. Its address may change."""
        if size > self.outputs.size:
            larger = Block(self._device, size)
            self.outputs.free()
            self.outputs = larger

    def send(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Begin to copy tensors to the device.

        Returns:
            Their addresses.

        Raises:
            ShapeRefused: they are more than the lane was made for.
        """
        offsets = self.inputs.places({name: (tensor.dtype, tensor.shape) for name, tensor in inputs.items()})
        for name, tensor in inputs.items():
            host = self.inputs.host[offsets[name] : offsets[name] + tensor.nbytes]
            np.copyto(host.view(tensor.dtype).reshape(tensor.shape), tensor)
            self._device.copy_in(self.inputs.address + offsets[name], host, self.stream)
        return {name: self.inputs.address + offset for name, offset in offsets.items()}

    def fetch(self, specs: Mapping[str, Spec], addresses: Mapping[str, int], through: Block | None = None) -> Tensors:
        """Copy tensors back once the stream has done what it was given, and wait for that.

        Args:
            addresses: of the tensors, on the device.
            through: a block whose pinned memory takes them; that of `outputs` unless given.
        """
        block = through or self.outputs
        offsets = block.places(specs)
        places = {name: block.host[offsets[name] : offsets[name] + bytes_of(spec)] for name, spec in specs.items()}
        for name, place in places.items():
            self._device.copy_out(place, addresses[name], self.stream)
        self._device.synchronise(self.stream)
        return {name: places[name].view(dtype).reshape(shape).copy() for name, (dtype, shape) in specs.items()}

    def synchronise(self) -> None:
        self._device.synchronise(self.stream)


L = TypeVar("L", bound=Lane)


class Lanes(Generic[L]):
    """As many as runs may overlap; who finds none waits for one.

    Args:
        make: one of them; called `count` times.
    """

    def __init__(self, count: int, make: Callable[[], L]) -> None:
        self._all: list[L] = []
        self._free: queue.SimpleQueue[L] = queue.SimpleQueue()
        try:
            for _ in range(count):
                self._all.append(make())
        except BaseException:
            self.close()
            raise
        for lane in self._all:
            self._free.put(lane)

    @contextmanager
    def take(self) -> Iterator[L]:
        lane = self._free.get()
        try:
            yield lane
        finally:
            self._free.put(lane)

    def close(self) -> None:
        """Free everything; of a device that has failed, what it lets go of."""
        for lane in self._all:
            with contextlib.suppress(EngineError):
                lane.close()
