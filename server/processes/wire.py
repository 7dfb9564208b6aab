"""What a front and the engine process say to each other: small messages over a stream, tensors only by their place.

    | length of the rest: u32 | kind: u8 | fixed fields | sometimes a little JSON |

Times are seconds on the system's monotonic clock, which `time.perf_counter` reads and all processes share.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import orjson
from numpy.typing import NDArray

from server.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    Internal,
    ModelOutputInvalid,
    NotReady,
    Overloaded,
    ServiceError,
)

HEAD = struct.Struct("<IB")
LARGEST = 2**20  # bytes of a message; more means that the stream is broken
INTRODUCTION = struct.Struct("<QQ")  # by the supervisor, to both, with three descriptors: which front, which generation

ERRORS: dict[str, type[ServiceError]] = {
    kind.code: kind
    for kind in (DeadlineExceeded, Draining, EngineFailed, Internal, ModelOutputInvalid, NotReady, Overloaded)
}


@dataclass(frozen=True, slots=True)
class Job:
    """Front to engine: run this picture."""

    number: int  # the front's own, counted up
    model: int  # place in the list of models
    offset: int  # of the tensor (h, w, 3) uint8 in the front's memory
    size: tuple[int, int]  # (h, w)
    content: tuple[int, int]  # (height, width) of the picture inside it
    deadline: float | None
    priority: int

    kind: ClassVar[int] = 1
    form: ClassVar[struct.Struct] = struct.Struct("<QHQIIIIdi")

    def pack(self) -> bytes:
        deadline = math.nan if self.deadline is None else self.deadline
        where = self.number, self.model, self.offset
        return self.form.pack(*where, *self.size, *self.content, deadline, self.priority)

    @classmethod
    def unpack(cls, body: bytes) -> Job:
        number, model, offset, h, w, height, width, deadline, priority = cls.form.unpack(body)
        at = None if math.isnan(deadline) else deadline
        return cls(number, model, offset, (h, w), (height, width), at, priority)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Front to engine: nobody waits for this job any more. It is answered all the same, so that its place is free."""

    number: int

    kind: ClassVar[int] = 2
    form: ClassVar[struct.Struct] = struct.Struct("<Q")

    def pack(self) -> bytes:
        return self.form.pack(self.number)

    @classmethod
    def unpack(cls, body: bytes) -> Cancel:
        return cls(*cls.form.unpack(body))


@dataclass(frozen=True, slots=True)
class Free:
    """Front to engine: the outputs at this place were read."""

    offset: int

    kind: ClassVar[int] = 3
    form: ClassVar[struct.Struct] = struct.Struct("<Q")

    def pack(self) -> bytes:
        return self.form.pack(self.offset)

    @classmethod
    def unpack(cls, body: bytes) -> Free:
        return cls(*cls.form.unpack(body))


@dataclass(frozen=True, slots=True)
class Tensor:
    """One output in the place of an answer."""

    name: str
    dtype: str  # as numpy writes it: `<f4`
    shape: tuple[int, ...]
    offset: int  # from the beginning of the place


@dataclass(frozen=True, slots=True)
class Answered:
    """Engine to front: the outputs of a job, in a place of the engine's memory."""

    number: int
    began: float
    ended: float
    batch_size: int
    offset: int
    tensors: tuple[Tensor, ...]

    kind: ClassVar[int] = 4
    form: ClassVar[struct.Struct] = struct.Struct("<QddIQ")

    def pack(self) -> bytes:
        tensors = [[tensor.name, tensor.dtype, tensor.shape, tensor.offset] for tensor in self.tensors]
        head = self.form.pack(self.number, self.began, self.ended, self.batch_size, self.offset)
        return head + orjson.dumps(tensors)

    @classmethod
    def unpack(cls, body: bytes) -> Answered:
        number, began, ended, batch_size, offset = cls.form.unpack_from(body)
        listed = orjson.loads(body[cls.form.size :])
        tensors = tuple(Tensor(name, dtype, tuple(shape), at) for name, dtype, shape, at in listed)
        return cls(number, began, ended, batch_size, offset, tensors)


@dataclass(frozen=True, slots=True)
class Failed:
    """Engine to front: why a job has no outputs."""

    number: int
    code: str
    message: str
    retry_after_s: float | None

    kind: ClassVar[int] = 5
    form: ClassVar[struct.Struct] = struct.Struct("<Q")

    def pack(self) -> bytes:
        return self.form.pack(self.number) + orjson.dumps([self.code, self.message, self.retry_after_s])

    @classmethod
    def unpack(cls, body: bytes) -> Failed:
        return cls(*cls.form.unpack_from(body), *orjson.loads(body[cls.form.size :]))

    def error(self) -> ServiceError:
        """The error as it was raised over there, without its cause, which the other log holds."""
        return ERRORS.get(self.code, Internal)(self.message, self.retry_after_s)


Message = Job | Cancel | Free | Answered | Failed
KINDS: dict[int, Any] = {kind.kind: kind for kind in (Job, Cancel, Free, Answered, Failed)}


def pack(message: Message) -> bytes:
    body = message.pack()
    return HEAD.pack(len(body) + 1, message.kind) + body


class Unpacker:
    """Messages out of a stream that arrives in pieces."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """
        Raises:
            ValueError: this is no message of ours.
        """
        self._data += data
        while len(self._data) >= HEAD.size:
            length, kind = HEAD.unpack_from(self._data)
            if kind not in KINDS or not 1 <= length <= LARGEST:
                raise ValueError(f"a message of kind {kind} and {length} bytes")
            end = HEAD.size + length - 1
            if len(self._data) < end:
                return
            body = bytes(self._data[HEAD.size : end])
            del self._data[:end]
            try:
                yield KINDS[kind].unpack(body)
            except (struct.error, TypeError) as error:
                raise ValueError(f"a message of kind {kind} that is none: {error}") from None


def lay_out(outputs: dict[str, NDArray[Any]], alignment: int) -> tuple[tuple[Tensor, ...], int]:
    """How one image's tensors lie one after the other, and the bytes they take in all."""
    tensors: list[Tensor] = []
    end = 0
    for name, array in outputs.items():
        begin = -(-end // alignment) * alignment
        tensors.append(Tensor(name, np.dtype(array.dtype).str, tuple(map(int, array.shape)), begin))
        end = begin + array.nbytes
    return tuple(tensors), end
