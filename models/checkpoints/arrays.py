"""numpy arrays in a pickle: detectron2's model zoo, and losses in everybody's logs.

numpy pickles an array in steps: an empty one, then its shape, its type and its bytes. Each step is checked where it is
taken down, and the bytes are not touched before somebody wants the array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.values import Blob, Storage, TensorView, brief, is_shape, tensor_view

NUMBERS = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "b1": torch.bool,
}


@dataclass(slots=True, eq=False)
class DType:
    """A numpy type: its code, as in `f4`, and the order of its bytes."""

    code: str
    big_endian: bool = False


@dataclass(slots=True, eq=False)
class Array:
    """
    Args:
        fortran: the first axis is the fastest.
        data: its bytes, or a text of as many letters; something else where it holds Python objects.
    """

    shape: tuple[int, ...] = ()
    dtype: DType | None = None
    fortran: bool = False
    data: Any = None

    def view(self) -> TensorView:
        """The array as a tensor in a storage of its own.

        Raises:
            CheckpointError: Python objects, texts or records inside, or not as many bytes as its shape says.
        """
        if self.dtype is None:
            raise CheckpointError("a numpy array was begun and never filled; the file is damaged, get it again")
        if self.dtype.code not in NUMBERS or not isinstance(self.data, bytes | str | Blob):
            raise CheckpointError(
                f"a numpy array holds type {brief(self.dtype.code)} where numbers are expected; Python objects, texts "
                "and records are not read: save the weights as plain float arrays"
            )
        dtype, count = NUMBERS[self.dtype.code], math.prod(self.shape)
        wanted = count * dtype.itemsize
        length = len(self.data.part if isinstance(self.data, Blob) else self.data)
        if length < wanted or (length > wanted and not isinstance(self.data, Blob)):
            raise self._mismatch(length)
        steps = _strides(self.shape) if self.fortran else _strides(self.shape[::-1])[::-1]
        return tensor_view(Storage(dtype, count, self._load), 0, self.shape, steps)

    def _load(self) -> Tensor:
        """(bytes,) uint8, in the order of this machine."""
        assert self.dtype is not None  # `view` has looked
        data = self.data.read() if isinstance(self.data, Blob) else _bytes(self.data)
        if len(data) != math.prod(self.shape) * NUMBERS[self.dtype.code].itemsize:
            raise self._mismatch(len(data))
        numbers = np.frombuffer(data, np.uint8).copy()
        if self.dtype.big_endian:
            numbers.view(f"u{self.dtype.code[1:]}").byteswap(inplace=True)
        return torch.from_numpy(numbers)

    def _mismatch(self, found: int) -> CheckpointError:
        code = "" if self.dtype is None else self.dtype.code
        return CheckpointError(
            f"a numpy array of shape {self.shape} and type {code} does not fit its {found} bytes; the file is damaged "
            "or hostile, get it again from its author"
        )


def check_shape(shape: Any) -> tuple[int, ...]:
    """
    Raises:
        CheckpointError: not a tuple of a few whole numbers from 0 on.
    """
    if not is_shape(shape):
        raise CheckpointError(f"a numpy array has shape {brief(shape)}; the file is damaged or hostile, get it again")
    found: tuple[int, ...] = shape
    return found


def _bytes(data: bytes | str) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return data.encode("latin-1")
    except UnicodeError:
        raise CheckpointError("an array's bytes are written as text that is not Latin-1; save it again") from None


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements between neighbours along each axis, the first axis being the fastest."""
    steps, step = [], 1
    for n in shape:
        steps.append(min(step, 2**61))
        step *= max(n, 1)
    return tuple(steps)
