"""What a pickle's opcodes work on: a stack, marks on it, a memo, and the file they lie in.

Whatever a pickle can do to these is bounded: marks are counted, a long string stays in the file, nothing is copied
that a file could have copied twice, and nothing is hashed, compared or printed that could be nested deep.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

from models.checkpoints.allowed import ALLOWED, build, call, is_hostile, plain_name
from models.checkpoints.errors import CheckpointError
from models.checkpoints.part import Part
from models.checkpoints.values import Blob, Foreign, Name, brief, put

MARKS = 1_000
INLINE = 4_096  # bytes; a longer string stays in the file
DIGITS = 1_024  # bytes of a whole number, or of a name
LINE = 1 << 28  # bytes of a text in protocol 0
WINDOW = 1 << 16


class Machine:
    """

    Args:
        file: what they lie in.
        persistent: what a persistent id stands for, which is how torch points at its storages; none are expected
            without it.
        at: where the first one begins.
    """

    def __init__(self, file: Part, persistent: Callable[[Any], Any] | None = None, at: int = 0) -> None:
        self.at = at
        self.foreign: set[str] = set()  # names that nobody here knows
        self._file, self._persistent = file, persistent
        self._window, self._window_at = b"", 0
        self.restart()

    def restart(self) -> None:
        """Forget what the last pickle left; the file goes on."""
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        """What is left at the end of a pickle."""
        if len(self._stack) != 1:
            raise self.nonsense(self.at, "the end")
        return self._stack.pop()

    def take(self, length: int) -> bytes:
        """The next bytes of the file."""
        begin = self.at - self._window_at
        if begin < 0 or begin + length > len(self._window):
            if length > WINDOW:
                data = self._file.read(self.at, length)
                self.at += length
                return data
            rest = len(self._file) - self.at
            if rest < length:
                raise CheckpointError(
                    f"it breaks off in the middle of its pickle, at byte {len(self._file)}; the copy or download is "
                    "incomplete, get the file again"
                )
            self._window, self._window_at, begin = self._file.read(self.at, min(WINDOW, rest)), self.at, 0
        self.at += length
        return self._window[begin : begin + length]

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def drop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def mark(self) -> None:
        if len(self._marks) >= MARKS:
            raise CheckpointError(f"its pickle is nested more than {MARKS} deep, which no checkpoint is; it is hostile")
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        begin = self._marks.pop()
        values = self._stack[begin:]
        del self._stack[begin:]
        return values

    def number(self, form: struct.Struct) -> int:
        found: int = form.unpack(self.take(form.size))[0]
        return found

    def line(self, limit: int = DIGITS) -> bytes:
        """Up to the next newline, which is left out."""
        begin, found = self.at, bytearray()
        while len(found) <= limit:
            step = min(DIGITS, len(self._file) - self.at)
            chunk = self.take(max(step, 1))
            end = chunk.find(b"\n")
            if end >= 0:
                found += chunk[:end]
                self.at += end + 1 - len(chunk)
                return bytes(found)
            found += chunk
        raise self.nonsense(begin, f"a line of more than {limit} bytes")

    def whole_number(self, length: int) -> int:
        if not 0 <= length <= DIGITS:
            raise self.nonsense(self.at, f"a number of {length} bytes")
        return int.from_bytes(self.take(length), "little", signed=True)

    def text(self, length: int) -> str | Blob:
        return str(self.take(length), "utf-8", "surrogatepass") if length <= INLINE else self._blob(length, text=True)

    def bytes(self, length: int) -> bytes | Blob:
        return self.take(length) if length <= INLINE else self._blob(length)

    def old_text(self, length: int) -> str | Blob:
        """A string of Python 2, which is text or bytes: nobody knows."""
        return self.take(length).decode("latin-1") if length <= INLINE else self._blob(length)

    def name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str) or max(len(module), len(name)) > DIGITS:
            raise self.nonsense(self.at, "a name that is no text")
        found = plain_name(module, name)
        if is_hostile(found):
            raise CheckpointError(
                f"it wants {brief(found.full)} to be called, which no checkpoint needs: the file is hostile; nothing "
                "of it was run, do not load it with anything else"
            )
        if found.full not in ALLOWED:
            self.foreign.add(found.full)
        return found

    def made(self, maker: Any, args: Any) -> Any:
        """What a call leaves behind."""
        if isinstance(args, tuple):
            if isinstance(maker, Name):
                return call(maker.full, args)
            if isinstance(maker, Foreign):
                return Foreign("the result of a call")
        raise CheckpointError(f"its pickle calls {brief(maker)} with {brief(args)}; the file is damaged or hostile")

    def set_items(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Foreign):
            target.items = {} if target.items is None else target.items
            target = target.items
        if not isinstance(target, dict) or len(pairs) % 2:
            raise CheckpointError(f"its pickle sets entries of {brief(target)}; the file is damaged or hostile")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            put(target, key, value)

    def extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Foreign):  # whose parts nobody asks for
            raise CheckpointError(f"its pickle appends to {brief(target)}; the file is damaged or hostile")

    def build(self, state: Any) -> None:
        build(self._stack[-1], state)

    def remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def recall(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def memoize(self) -> None:
        self.remember(len(self._memo))

    def duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def tuple(self, length: int) -> None:
        values = self._stack[-length:]
        if len(values) != length:
            raise IndexError
        self._stack[-length:] = [tuple(values)]

    def persistent(self, pid: Any) -> Any:
        if self._persistent is None:
            raise CheckpointError(
                f"its pickle points with {brief(pid)} at numbers kept elsewhere, and such a file has nothing but its "
                "pickle; it is damaged or hostile"
            )
        return self._persistent(pid)

    def refuse(self, what: str) -> None:
        raise CheckpointError(f"its pickle uses {what}, which no checkpoint needs; save the state dict with torch.save")

    def check_protocol(self, protocol: int) -> None:
        if protocol > pickle.HIGHEST_PROTOCOL:
            raise CheckpointError(
                f"pickle protocol {protocol} is not known, at most {pickle.HIGHEST_PROTOCOL}; save it again"
            )

    def _blob(self, length: int, text: bool = False) -> Blob:
        part = self._file.part(self.at, length)
        self.at += length
        return Blob(part, text)

    def nonsense(self, at: int, what: str) -> CheckpointError:
        return CheckpointError(
            f"its pickle makes no sense at byte {at} ({what}); the file is damaged, hostile or no pickle at all, get "
            "it again"
        )
