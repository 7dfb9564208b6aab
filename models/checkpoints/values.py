"""What a pickle's program leaves behind: plain Python values, and these.

None of them has any behaviour that a file could call: no `__setstate__`, no `__reduce__`, no attribute that a file
sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.part import Part

AXES = 16  # of a tensor, at most
ENTRIES = 100_000  # of a dictionary, at most
KEY_LENGTH = 4_096  # of a text that is a key, at most


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """A function or class that the file asked for, as in `torch._utils._rebuild_tensor_v2`. Nobody looked it up."""

    full: str


@dataclass(slots=True, eq=False)
class Foreign:
    """An object of a class that we do not know, and what the file said about it.

    Args:
        state: what its `__setstate__` would have been given.
        items: what would have been set in it by key.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """A long string that still lies in the file.

    Args:
        text: it is UTF-8 of a text whose letters are the bytes meant, as Python 3 writes bytes in protocol 2.
    """

    part: Part
    text: bool = False

    def read(self) -> bytes:
        """
        Raises:
            CheckpointError: a text with letters that are no bytes.
        """
        data = self.part.read(0, len(self.part))
        if not self.text:
            return data
        try:
            return data.decode("utf-8").encode("latin-1")
        except UnicodeError:
            raise CheckpointError("an array's bytes are written as text that is not Latin-1; save it again") from None


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Numbers of one type, somewhere in the file.

    Args:
        numel: how many.
        load: reads them: (numel * itemsize,) uint8.
    """

    dtype: torch.dtype
    numel: int
    load: Callable[[], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class TensorView:
    """A tensor as a view of a storage, no element of it outside; `tensor_view` makes them, and has checked."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What a contiguous copy takes."""
        return math.prod(self.size) * self.dtype.itemsize

    def of(self, numbers: Tensor) -> Tensor:
        """The tensor itself, from what its storage has loaded."""
        if 0 in self.size:
            return torch.empty(self.size, dtype=self.dtype)
        whole = numbers.numel() // self.dtype.itemsize * self.dtype.itemsize
        return numbers[:whole].view(self.dtype).as_strided(self.size, self.stride, self.offset)


def tensor_view(storage: Storage, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> TensorView:
    """
    Args:
        offset: elements of the storage before the first.
        dtype: when it is not the storage's own.

    Raises:
        CheckpointError: an element would lie outside of the storage, or these are no sizes at all.
    """
    said = f"size {brief(size)}, stride {brief(stride)} and offset {brief(offset)}"
    if not (is_shape(size) and is_shape(stride) and is_shape((offset,)) and len(size) == len(stride)):
        raise CheckpointError(
            f"a tensor has {said} where up to {AXES} whole numbers from 0 on belong, one size and one stride for each "
            "axis; the file is damaged or hostile, get it again from its author"
        )
    dtype = dtype or storage.dtype
    room = storage.numel * storage.dtype.itemsize // dtype.itemsize
    reach = offset if 0 in size else offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if reach > room:
        raise CheckpointError(
            f"a tensor of {said} reaches element {reach} of a storage that has {room}; the file is damaged or "
            "hostile, get it again from its author"
        )
    return TensorView(storage, dtype, offset, size, stride)


def is_shape(value: Any) -> bool:
    """A tuple of a few whole numbers from 0 on, each within 62 bits."""
    return isinstance(value, tuple) and len(value) <= AXES and all(is_count(number) for number in value)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def put(dictionary: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an entry, unless hashing its key could take forever.

    Raises:
        CheckpointError: a key nobody needs: long, or made of other things; or too many of them.
    """
    if not _hashes_quickly(key) and not (
        isinstance(key, tuple) and len(key) <= AXES and all(_hashes_quickly(part) for part in key)
    ):
        raise CheckpointError(
            f"a dictionary has {brief(key)} for a key where a short text or number belongs; the file is damaged or "
            "hostile"
        )
    if len(dictionary) >= ENTRIES:
        raise CheckpointError(
            f"a dictionary has more than {ENTRIES} entries, far more than any network has weights; save the weights "
            "alone"
        )
    dictionary[key] = value


def _hashes_quickly(key: Any) -> bool:
    match key:
        case str() | bytes():
            return len(key) <= KEY_LENGTH
        case int():
            return abs(key) < 2**63
        case float() | None | Name() | Foreign():
            return True
        case _:
            return False


def brief(value: Any) -> str:
    """A value of the file for a message: never long, never nested."""
    match value:
        case tuple() if is_shape(value):
            return str(value)
        case int() if abs(value) < 2**63:
            return str(value)
        case int():
            return "a huge number"
        case str():
            return repr(value[:60]) if len(value) <= 60 else f"{value[:60]!r}..."
        case Name() | Foreign():
            return f"a {type(value).__name__.lower()} {(value.full if isinstance(value, Name) else value.name)[:60]}"
        case _:
            return f"a {type(value).__name__.lower()}"
