"""A file, or a piece of one: read where it is needed, never as a whole."""

from __future__ import annotations

from typing import BinaryIO

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError


class Part:
    """`length` bytes of a stream from `start` on. Positions count from the part's own beginning.

    Args:
        stream: seekable, unbuffered; nobody else moves it while a method runs.
    """

    __slots__ = ("_length", "_start", "_stream")

    def __init__(self, stream: BinaryIO, start: int, length: int) -> None:
        self._stream, self._start, self._length = stream, start, length

    def __len__(self) -> int:
        return self._length

    def part(self, at: int, length: int) -> Part:
        """
        Raises:
            CheckpointError: it would reach beyond this one.
        """
        self._check(at, length)
        return Part(self._stream, self._start + at, length)

    def read(self, at: int, length: int) -> bytes:
        """
        Raises:
            CheckpointError: the part ends before.
        """
        self._check(at, length)
        data = bytearray(length)
        self._fill(at, memoryview(data))
        return bytes(data)

    def tensor(self, at: int, length: int) -> Tensor:
        """(length,) uint8 in memory of its own.

        Raises:
            CheckpointError: the part ends before.
        """
        self._check(at, length)
        numbers = torch.empty(length, dtype=torch.uint8)
        if length:
            self._fill(at, numbers.numpy().data)
        return numbers

    def _check(self, at: int, length: int) -> None:
        if not 0 <= at <= at + length <= self._length:
            raise CheckpointError(
                f"it breaks off: bytes {at} to {at + length} should be there, it has {self._length}; the copy or "
                "download is incomplete, get the file again"
            )

    def _fill(self, at: int, room: memoryview) -> None:
        self._stream.seek(self._start + at)
        filled = 0
        while filled < len(room):
            count: int = self._stream.readinto(room[filled:])  # type: ignore[attr-defined]  # typeshed leaves it out
            if not count:
                raise CheckpointError(f"it became shorter while it was read, {filled} of {len(room)} bytes; try again")
            filled += count
