"""The bytes of a pickle to a tree of plain values, by a machine of our own that has nothing to run a call with.

Python's pickle machine has opcodes that fetch any function by its name (GLOBAL), call it (REDUCE, NEWOBJ, ...) and hand
any object a state (BUILD): enough to run anything. Here the same opcodes take notes:

    c posix system | X "rm -rf /" | TUPLE1 | R     ->  Foreign("posix.system", args=("rm -rf /",))

What the few names on the allow list stand for is in `allowed.py`. A name that nothing honest asks for ends the reading
at once: that is a courtesy to the reader, safety does not rest on it.

`pickletools` in the standard library describes every opcode.
"""

from __future__ import annotations

import codecs
import pickle as op
import struct
import warnings
from collections.abc import Callable
from typing import Any

from models.checkpoints.errors import CheckpointError
from models.checkpoints.machine import LINE, Machine
from models.checkpoints.values import Foreign, Name, brief

OPCODES = 2_000_000  # a full checkpoint with its optimizer takes a tenth


def load(machine: Machine) -> Any:
    """The value of the pickle that begins where the last one ended.

    Raises:
        CheckpointError: no pickle, one that breaks off or never ends, or one that asks for something hostile.
    """
    machine.restart()
    begin = machine.at
    for _ in range(OPCODES):
        at = machine.at
        code = machine.take(1)
        if code == op.STOP:
            return machine.result()
        action = ACTIONS.get(code)
        if action is None:
            raise machine.nonsense(at, f"opcode {code!r}")
        try:
            action(machine)
        except (IndexError, KeyError, ValueError, OverflowError, struct.error):
            raise machine.nonsense(at, f"opcode {code!r}") from None
    raise CheckpointError(
        f"the pickle at byte {begin} goes on after {OPCODES} steps, ten times what a checkpoint needs; it is hostile, "
        "or has much beside the weights: save the state dict alone"
    )


U1, U2, U4, U8, I4, F8 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<Q", "<i", ">d"))


def _integer(m: Machine) -> int | bool:
    """Protocol 0 writes True as 01 and False as 00."""
    line = m.line()
    return line == b"01" if line in (b"00", b"01") else int(line)


def _escaped(line: bytes) -> str:
    """A quoted string of protocol 0."""
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
        raise ValueError
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of an escape that nobody knows
        data: bytes = codecs.escape_decode(line[1:-1])[0]
    return data.decode("latin-1")


def _new_object(m: Machine, values: list[Any]) -> Any:
    return m.made(values[0], tuple(values[1:]))


def _reduce(m: Machine) -> None:
    args, maker = m.pop(), m.pop()
    m.push(m.made(maker, args))


def _new_with_keywords(m: Machine) -> None:
    keywords, args, maker = m.pop(), m.pop(), m.pop()
    m.push(Foreign(maker.full if isinstance(maker, Name) else brief(maker), (args, keywords)))


def _stack_name(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    m.push(m.name(module, name))


def _instance(m: Machine) -> None:
    maker = m.name(m.line().decode(), m.line().decode())
    m.push(m.made(maker, tuple(m.since_mark())))


def _dictionary(m: Machine) -> None:
    pairs = m.since_mark()
    m.push({})
    m.set_items(pairs)


def _entry(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


ACTIONS: dict[bytes, Callable[[Machine], object]] = {
    # what a file is made of
    op.PROTO: lambda m: m.check_protocol(m.number(U1)),
    op.FRAME: lambda m: m.take(8),
    # constants and numbers
    op.NONE: lambda m: m.push(None),
    op.NEWTRUE: lambda m: m.push(True),
    op.NEWFALSE: lambda m: m.push(False),
    op.INT: lambda m: m.push(_integer(m)),
    op.BININT: lambda m: m.push(m.number(I4)),
    op.BININT1: lambda m: m.push(m.number(U1)),
    op.BININT2: lambda m: m.push(m.number(U2)),
    op.LONG: lambda m: m.push(int(m.line().rstrip(b"L"))),
    op.LONG1: lambda m: m.push(m.whole_number(m.number(U1))),
    op.LONG4: lambda m: m.push(m.whole_number(m.number(I4))),
    op.FLOAT: lambda m: m.push(float(m.line())),
    op.BINFLOAT: lambda m: m.push(m.number(F8)),
    # strings
    op.STRING: lambda m: m.push(_escaped(m.line(LINE))),
    op.SHORT_BINSTRING: lambda m: m.push(m.old_text(m.number(U1))),
    op.BINSTRING: lambda m: m.push(m.old_text(m.number(U4))),
    op.UNICODE: lambda m: m.push(str(m.line(LINE), "raw-unicode-escape")),
    op.SHORT_BINUNICODE: lambda m: m.push(m.text(m.number(U1))),
    op.BINUNICODE: lambda m: m.push(m.text(m.number(U4))),
    op.BINUNICODE8: lambda m: m.push(m.text(m.number(U8))),
    op.SHORT_BINBYTES: lambda m: m.push(m.bytes(m.number(U1))),
    op.BINBYTES: lambda m: m.push(m.bytes(m.number(U4))),
    op.BINBYTES8: lambda m: m.push(m.bytes(m.number(U8))),
    op.BYTEARRAY8: lambda m: m.push(m.bytes(m.number(U8))),
    # tuples, lists, dictionaries; a set is a list
    op.EMPTY_TUPLE: lambda m: m.push(()),
    op.TUPLE1: lambda m: m.tuple(1),
    op.TUPLE2: lambda m: m.tuple(2),
    op.TUPLE3: lambda m: m.tuple(3),
    op.TUPLE: lambda m: m.push(tuple(m.since_mark())),
    op.FROZENSET: lambda m: m.push(m.since_mark()),
    op.EMPTY_LIST: lambda m: m.push([]),
    op.EMPTY_SET: lambda m: m.push([]),
    op.LIST: lambda m: m.push(m.since_mark()),
    op.APPEND: lambda m: m.extend([m.pop()]),
    op.APPENDS: lambda m: m.extend(m.since_mark()),
    op.ADDITEMS: lambda m: m.extend(m.since_mark()),
    op.EMPTY_DICT: lambda m: m.push({}),
    op.DICT: _dictionary,
    op.SETITEM: _entry,
    op.SETITEMS: lambda m: m.set_items(m.since_mark()),
    # the stack and the memo
    op.MARK: lambda m: m.mark(),
    op.POP: lambda m: m.drop(),
    op.POP_MARK: lambda m: m.since_mark(),
    op.DUP: lambda m: m.duplicate(),
    op.PUT: lambda m: m.remember(int(m.line())),
    op.BINPUT: lambda m: m.remember(m.number(U1)),
    op.LONG_BINPUT: lambda m: m.remember(m.number(U4)),
    op.MEMOIZE: lambda m: m.memoize(),
    op.GET: lambda m: m.recall(int(m.line())),
    op.BINGET: lambda m: m.recall(m.number(U1)),
    op.LONG_BINGET: lambda m: m.recall(m.number(U4)),
    # names, calls and states: where Python's own machine runs code
    op.GLOBAL: lambda m: m.push(m.name(m.line().decode(), m.line().decode())),
    op.STACK_GLOBAL: _stack_name,
    op.REDUCE: _reduce,
    op.NEWOBJ: _reduce,
    op.NEWOBJ_EX: _new_with_keywords,
    op.INST: _instance,
    op.OBJ: lambda m: m.push(_new_object(m, m.since_mark())),
    op.BUILD: lambda m: m.build(m.pop()),
    op.PERSID: lambda m: m.push(m.persistent(m.line().decode())),
    op.BINPERSID: lambda m: m.push(m.persistent(m.pop())),
    op.EXT1: lambda m: m.refuse("the extension registry"),
    op.EXT2: lambda m: m.refuse("the extension registry"),
    op.EXT4: lambda m: m.refuse("the extension registry"),
    op.NEXT_BUFFER: lambda m: m.refuse("buffers outside of itself"),
    op.READONLY_BUFFER: lambda m: m.refuse("buffers outside of itself"),
}
