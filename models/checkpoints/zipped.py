"""torch's own files since 1.6: a zip with the pickle in `<name>/data.pkl` and the numbers in `<name>/data/<key>`.

The directory at the end of a zip is a claim, and every claim is checked against the bytes: where a member begins, that
no two share bytes, that a packed one does not grow without measure (torch packs none). Nothing is ever unpacked to a
path. (APPNOTE.TXT of PKWARE, 6.3.10, sections 4.3 to 4.5.)
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.allowed import storage_dtype
from models.checkpoints.contents import Opened
from models.checkpoints.errors import CheckpointError
from models.checkpoints.machine import Machine
from models.checkpoints.opcodes import load
from models.checkpoints.part import Part
from models.checkpoints.values import Storage, brief, is_count

DIRECTORY = 1 << 24  # bytes of the list of members, at most: a hundred thousand of them
PICKLE = 1 << 28  # bytes of the pickle, at most
GROWTH = 20  # of a packed member, at most; weights hardly shrink at all
SLACK = 1 << 20  # bytes that a small member may have grown to whatever it came from

END, END64, LOCATOR64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
ENTRY, LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
STORED, DEFLATED = 0, 8


@dataclass(frozen=True, slots=True)
class Member:
    """Packed in `data`, `size` bytes when unpacked, with checksum `crc` (0 where the writer left it out)."""

    data: Part
    size: int
    crc: int
    packed: bool

    def bytes(self) -> Tensor:
        """(size,) uint8.

        Raises:
            CheckpointError: they are not what the directory promised.
        """
        found = self._unpacked() if self.packed else self.data.tensor(0, self.size)
        if self.crc and zlib.crc32(found.numpy().data) != self.crc:
            raise CheckpointError("its checksum does not fit: bytes were changed on the way; get the file again")
        return found

    def _unpacked(self) -> Tensor:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            found = bytearray(stream.decompress(self.data.read(0, len(self.data)), self.size + 1))
        except zlib.error:
            raise CheckpointError("a packed member cannot be unpacked; the file is damaged, get it again") from None
        if len(found) != self.size:
            raise CheckpointError("a packed member is not as long as it says; the file is damaged or hostile")
        return torch.frombuffer(found, dtype=torch.uint8) if found else torch.empty(0, dtype=torch.uint8)


def read(file: Part) -> Opened:
    """
    Raises:
        CheckpointError: not a zip of torch's, or one that lies.
    """
    members = read_members(file)
    roots = [
        name.removesuffix("data.pkl") for name in members if name.count("/") < 2 and f"/{name}".endswith("/data.pkl")
    ]
    if len(roots) != 1:
        listed = ", ".join(map(brief, list(members)[:6]))
        raise CheckpointError(
            f"a checkpoint of torch's has one data.pkl, this zip has {len(roots)} (it holds {listed or 'nothing'}); "
            "if it is an archive with the checkpoint inside, unpack it first"
        )
    root = roots[0]
    if f"{root}constants.pkl" in members:
        raise CheckpointError(
            "it is TorchScript, a program with its weights, where a state dict is expected; load it where it came "
            "from and save its state_dict() with torch.save"
        )
    if f"{root}byteorder" in members and members[f"{root}byteorder"].bytes()[:8].numpy().tobytes() != b"little":
        raise CheckpointError("it was saved on a big-endian machine; load it there and save it as safetensors")
    pickle = members[f"{root}data.pkl"]
    if pickle.size > PICKLE:
        raise CheckpointError(
            f"its pickle is {pickle.size} bytes long, at most {PICKLE} are read; save the state dict alone"
        )

    storages: dict[tuple[str, torch.dtype], Storage] = {}

    def storage(pid: Any) -> Storage:
        match pid:
            case ("storage", kind, str() as key, _, numel):
                dtype = storage_dtype(kind)
                return storages.setdefault((key, dtype), _storage(members, f"{root}data/{key}", dtype, numel))
        raise CheckpointError(
            f"its pickle points at {brief(pid)} where a storage is expected; it is damaged or hostile"
        )

    machine = Machine(pickle.data if not pickle.packed else _in_memory(pickle), storage)
    tree = load(machine)
    return Opened(tree, "torch zip", tuple(sorted(machine.foreign)))


def _storage(members: dict[str, Member], name: str, dtype: torch.dtype, numel: Any) -> Storage:
    member = members.get(name)
    if member is None:
        raise CheckpointError(f"its pickle points at the member {brief(name)}, which is not there; get the file again")
    if not is_count(numel) or numel * dtype.itemsize != member.size:
        raise CheckpointError(
            f"member {brief(name)} has {member.size} bytes where its pickle promises {brief(numel)} numbers of "
            f"{dtype.itemsize}; the file is damaged or hostile, get it again from its author"
        )
    return Storage(dtype, numel, member.bytes)


def _in_memory(member: Member) -> Part:
    data = member.bytes().numpy().tobytes()
    return Part(io.BytesIO(data), 0, len(data))


def read_members(file: Part) -> dict[str, Member]:
    """The members of a zip by name.

    Raises:
        CheckpointError: the directory does not fit the file, or a member is encrypted, overlaps another, grows without
            measure when unpacked, or has a name that means another place.
    """
    count, size, at, end = _find_directory(file)
    if size > DIRECTORY:
        raise CheckpointError(f"its list of members is {size} bytes long, at most {DIRECTORY} are read; it is hostile")
    if at + size != end:
        raise CheckpointError(
            f"its list of members should end at byte {end} and ends at {at + size}: something was cut out, put before "
            "it or added; get the file again"
        )
    directory = file.read(at, size)
    members: dict[str, Member] = {}
    taken: list[tuple[int, int]] = []
    position = 0
    while position < size:
        try:
            entry = ENTRY.unpack_from(directory, position)
            lengths = entry[10:13]
            stop = position + ENTRY.size + sum(lengths)
            raw = directory[position + ENTRY.size : position + ENTRY.size + lengths[0]]
            extra = directory[position + ENTRY.size + lengths[0] : stop - lengths[2]]
            name = _checked_name(raw, members)
            packed, unpacked, start = _sizes64(extra, entry[8], entry[9], entry[16])
            if entry[0] != b"PK\1\2" or stop > size:
                raise struct.error
        except struct.error:
            raise CheckpointError("its list of members makes no sense; the file is damaged, get it again") from None
        position = stop
        if entry[3] & 1 or entry[4] not in (STORED, DEFLATED):
            raise CheckpointError(
                f"member {brief(name)} is encrypted or packed in a way that torch never uses; pack it anew"
            )
        begin = _begin(file, start, raw)
        if begin + packed > at:
            raise CheckpointError(
                f"member {brief(name)} reaches into the list of members; the file is damaged or hostile"
            )
        taken.append((start, begin + packed))
        if (entry[4] == STORED and packed != unpacked) or unpacked > GROWTH * packed + SLACK:
            raise CheckpointError(
                f"member {brief(name)} would grow from {packed} to {unpacked} bytes, and weights never shrink "
                f"{GROWTH}-fold: it is a zip bomb, or was packed by somebody else than torch; save it again with "
                "torch.save"
            )
        members[name] = Member(file.part(begin, packed), unpacked, entry[7], entry[4] == DEFLATED)
    taken.sort()
    if any(before[1] > after[0] for before, after in pairwise(taken)):
        raise CheckpointError("members of it lie over each other, as in a zip bomb; it is hostile")
    if len(members) != count:
        raise CheckpointError(
            f"it promises {count} members and lists {len(members)}; the file is damaged, get it again"
        )
    return members


def _find_directory(file: Part) -> tuple[int, int, int, int]:
    """Number of members, bytes of their list, where it begins, and where it has to end."""
    tail_at = max(0, len(file) - END.size - 0xFFFF)
    tail = file.read(tail_at, len(file) - tail_at)
    found = tail.rfind(b"PK\5\6")
    if found < 0 or found + END.size > len(tail):
        raise CheckpointError(
            f"it begins like a zip and has no list of members at its end (byte {len(file)}); the copy or download is "
            "incomplete, get the file again"
        )
    _, _, _, _, count, size, at, _ = END.unpack_from(tail, found)
    end = tail_at + found
    if end < LOCATOR64.size:
        return count, size, at, end
    signature, _, at64, _ = LOCATOR64.unpack(file.read(end - LOCATOR64.size, LOCATOR64.size))
    if signature != b"PK\6\7":
        return count, size, at, end
    record = END64.unpack(file.read(at64, END64.size))
    if record[0] != b"PK\6\6":
        raise CheckpointError("its list of members is not where it says; the file is damaged, get it again")
    return record[7], record[8], record[9], at64


def _checked_name(raw: bytes, members: dict[str, Member]) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = raw.decode("cp437")
    parts = name.split("/")
    if (
        name in members
        or not name.isprintable()
        or "\\" in name
        or ":" in name
        or "" in parts[:-1]
        or {"..", "."} & {*parts}
    ):
        raise CheckpointError(
            f"a member is called {brief(name)}: twice the same, or a name that means another place; it is hostile"
        )
    return name


def _sizes64(extra: bytes, packed: int, unpacked: int, start: int) -> tuple[int, int, int]:
    """Packed and unpacked size and where the member begins: in an extra field where 32 bits do not hold them."""
    wanted = [value == 0xFFFFFFFF for value in (unpacked, packed, start)]
    at = 0
    while any(wanted):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{sum(wanted)}Q", extra[: at + 4 + length], at + 4))
            unpacked, packed, start = (
                next(wide) if wide_one else value
                for wide_one, value in zip(wanted, (unpacked, packed, start), strict=True)
            )
            break
        at += 4 + length
    return packed, unpacked, start


def _begin(file: Part, start: int, name: bytes) -> int:
    """Where a member's bytes begin: behind its own header, which has to agree with the list."""
    header = LOCAL.unpack(file.read(start, LOCAL.size))
    if header[0] != b"PK\3\4" or file.read(start + LOCAL.size, header[9]) != name:
        raise CheckpointError(f"member {brief(name.decode('cp437'))} is not where the list says; the file is damaged")
    begin: int = start + LOCAL.size + header[9] + header[10]
    return begin
