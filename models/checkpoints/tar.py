"""torch's files before 0.1.11: a tar of three members, each with pickles and numbers in turn.

storages   how many | for each: (key, device, type), numel (8 bytes), its numbers | pieces: [(key, of, offset, numel),
...] tensors    how many | for each: (key, storage, type), axes (8 bytes), sizes, strides, offset (8 bytes each)
pickle     the object, which points at tensors by their keys
"""

from __future__ import annotations

import struct
from typing import Any

import torch

from models.checkpoints.allowed import storage_dtype
from models.checkpoints.contents import Opened
from models.checkpoints.errors import CheckpointError
from models.checkpoints.machine import Machine
from models.checkpoints.opcodes import load
from models.checkpoints.part import Part
from models.checkpoints.values import AXES, Name, Storage, TensorView, brief, is_count, is_shape, tensor_view

BLOCK = 512
MEMBERS = 100
COUNT = 100_000  # storages or tensors


def read(file: Part) -> Opened:
    """
    Raises:
        CheckpointError: not such a file, or one that lies.
    """
    members = _members(file)
    missing = [name for name in ("storages", "tensors", "pickle") if name not in members]
    if missing:
        listed = ", ".join(map(brief, members)) or "nothing"
        raise CheckpointError(
            f"a checkpoint in a tar has the members storages, tensors and pickle, this one holds {listed}; if it is "
            "an archive with the checkpoint inside, unpack it first"
        )
    storages = _storages(members["storages"])
    known: dict[int, TensorView | Storage] = {**storages, **_tensors(members["tensors"], storages)}

    def find(pid: Any) -> TensorView | Storage | Name:
        match pid:
            case (Name() as kind, _, _):
                return kind
            case str() | int() if _key(pid) in known:
                return known[_key(pid)]
            case _:
                pass
        raise CheckpointError(f"its pickle points at {brief(pid)}, which is no tensor in it; it is damaged or hostile")

    machine = Machine(members["pickle"], find)
    tree = load(machine)
    return Opened(tree, "torch tar", tuple(sorted(machine.foreign)))


def _members(file: Part) -> dict[str, Part]:
    found: dict[str, Part] = {}
    at = 0
    for _ in range(MEMBERS):
        if at + BLOCK > len(file):
            break
        header = file.read(at, BLOCK)
        if not any(header):
            break
        name, kind = header[:100].rstrip(b"\0").decode("latin-1"), header[156:157]
        try:
            size = int(header[124:136].strip(b" \0") or b"0", 8)
        except ValueError:
            raise CheckpointError("it begins like a tar and a header makes no sense; the file is damaged") from None
        if kind in (b"0", b"\0"):
            if name in found:
                raise CheckpointError(f"member {brief(name)} is there twice; it is hostile")
            found[name.removeprefix("./")] = file.part(at + BLOCK, size)
        at += BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
    return found


def _storages(member: Part) -> dict[int, Storage]:
    machine = Machine(member)
    found: dict[int, Storage] = {}
    data: dict[int, Part] = {}
    for _ in range(_count(load(machine))):
        match load(machine):
            case (key, _, kind):
                dtype = storage_dtype(kind)
            case other:
                raise CheckpointError(f"a storage is announced by {brief(other)}; the file is damaged")
        numel = int.from_bytes(member.read(machine.at, 8), "little")
        data[_key(key)] = member.part(machine.at + 8, numel * dtype.itemsize)
        found[_key(key)] = _storage(data[_key(key)], dtype, 0, numel)
        machine.at += 8 + numel * dtype.itemsize
    pieces = load(machine)
    for piece in pieces if isinstance(pieces, list) else [pieces]:
        if not isinstance(piece, tuple) or len(piece) != 4 or not is_shape(piece[2:]) or _key(piece[1]) not in data:
            raise CheckpointError(f"a piece of a storage is told as {brief(piece)}; the file is damaged or hostile")
        target, root, offset, numel = piece
        found[_key(target)] = _storage(data[_key(root)], found[_key(root)].dtype, offset, numel)
    return found


def _storage(data: Part, dtype: torch.dtype, offset: int, numel: int) -> Storage:
    piece = data.part(offset * dtype.itemsize, numel * dtype.itemsize)
    return Storage(dtype, numel, lambda: piece.tensor(0, len(piece)))


def _tensors(member: Part, storages: dict[int, Storage]) -> dict[int, TensorView]:
    machine = Machine(member)
    found: dict[int, TensorView] = {}
    for _ in range(_count(load(machine))):
        match load(machine):
            case (key, storage, _) if _key(storage) in storages:
                axes = int.from_bytes(member.read(machine.at, 4), "little", signed=True)
            case other:
                raise CheckpointError(f"a tensor is announced by {brief(other)}, or lies in no storage; it is damaged")
        if not 0 <= axes <= AXES:
            raise CheckpointError(f"a tensor has {axes} axes, at most {AXES} are read; the file is damaged or hostile")
        layout = struct.unpack(f"<{2 * axes + 1}q", member.read(machine.at + 8, 8 * (2 * axes + 1)))
        machine.at += 8 + 8 * len(layout)
        found[_key(key)] = tensor_view(storages[_key(storage)], layout[-1], layout[:axes], layout[axes : 2 * axes])
    return found


def _count(told: Any) -> int:
    if not is_count(told) or told > COUNT:
        raise CheckpointError(
            f"it promises {brief(told)} tensors, at most {COUNT} are read; the file is damaged or hostile"
        )
    number: int = told
    return number


def _key(told: Any) -> int:
    """Addresses in the memory of who saved it, written as numbers or as texts."""
    if isinstance(told, str) and len(told) <= 20 and told.lstrip("-").isdecimal():
        return int(told)
    if isinstance(told, int) and abs(told) < 2**64:
        return told
    raise CheckpointError(f"its pickle points at {brief(told)} where a number is expected; it is damaged or hostile")
