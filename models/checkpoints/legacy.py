"""torch's files before 1.6: pickles one after the other, then the numbers.

magic number | protocol | who wrote it | the object | keys of its storages | for each key: numel (8 bytes), its numbers
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.checkpoints.allowed import storage_dtype
from models.checkpoints.contents import Opened
from models.checkpoints.errors import CheckpointError
from models.checkpoints.machine import Machine
from models.checkpoints.opcodes import load
from models.checkpoints.part import Part
from models.checkpoints.values import Name, Storage, brief, is_count, is_shape

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
BEGINNINGS = tuple(
    proto + form
    for proto in (b"", *(bytes((0x80, version)) for version in range(2, 6)))
    for form in (b"\x8a\x0a" + MAGIC.to_bytes(10, "little"), b"L%dL" % MAGIC)
)


def read(file: Part) -> Opened:
    """
    Raises:
        CheckpointError: not such a file, or one that lies.
    """
    table = _Table(file)
    machine = Machine(file, table.find)
    magic, protocol, system = load(machine), load(machine), load(machine)
    if magic != MAGIC or protocol != PROTOCOL:
        raise CheckpointError(f"it should begin with torch's magic number and {PROTOCOL}, found {brief(protocol)}")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise CheckpointError("it was saved on a big-endian machine; load it there and save it as safetensors")
    tree = load(machine)
    keys = load(machine)
    table.place(keys, machine.at)
    return Opened(tree, "torch before 1.6", tuple(sorted(machine.foreign)))


class _Table:
    """Storages by key. Their numbers come last in the file, so where they are is known last."""

    def __init__(self, file: Part) -> None:
        self._file = file
        self._storages: dict[str, Storage] = {}
        self._views: dict[tuple[str, int, int], Storage] = {}
        self._begins: dict[str, int] = {}

    def find(self, pid: Any) -> Storage | Name:
        """What a persistent id stands for: a storage, or the class of a module whose source went along."""
        match pid:
            case ("module", Name() as kind, _, _):
                return kind
            case ("storage", kind, str() as key, _, numel, view):
                storage = self._storage(key, storage_dtype(kind), numel)
                return storage if view is None else self._view(key, storage, view)
        raise CheckpointError(
            f"its pickle points at {brief(pid)} where a storage is expected; it is damaged or hostile"
        )

    def place(self, keys: Any, at: int) -> None:
        """Note where each storage's numbers are."""
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise CheckpointError("its list of storages is no list of keys; the file is damaged, get it again")
        for key in keys:
            storage = self._storages.get(key)
            if storage is None or key in self._begins:
                raise CheckpointError(
                    f"storage {brief(key)} is listed twice, or used nowhere; the file is damaged or hostile"
                )
            numel = int.from_bytes(self._file.read(at, 8), "little")
            if numel != storage.numel:
                raise CheckpointError(
                    f"storage {brief(key)} has {numel} numbers where the pickle promises {storage.numel}; the file is "
                    "damaged"
                )
            self._begins[key] = at + 8
            at += 8 + numel * storage.dtype.itemsize
            if at > len(self._file):
                raise CheckpointError(
                    f"it breaks off: storage {brief(key)} should end at byte {at}, the file at {len(self._file)}; the "
                    "copy or download is incomplete, get the file again"
                )
        lost = [key for key in self._storages if key not in self._begins]
        if lost:
            raise CheckpointError(f"{len(lost)} storages have no numbers in it ({brief(lost[0])}); get the file again")

    def _storage(self, key: str, dtype: torch.dtype, numel: Any) -> Storage:
        known = self._storages.get(key)
        if not is_count(numel) or (known is not None and (known.dtype, known.numel) != (dtype, numel)):
            raise CheckpointError(
                f"storage {brief(key)} has {brief(numel)} numbers, or is told twice; it is damaged or hostile"
            )
        if known is None:
            known = self._storages[key] = Storage(
                dtype, numel, lambda: self._file.tensor(self._begins[key], numel * dtype.itemsize)
            )
        return known

    def _view(self, key: str, storage: Storage, view: Any) -> Storage:
        """A piece of a storage, as files before 0.4 have them."""
        if not isinstance(view, tuple) or len(view) != 3 or not is_shape(view[1:]) or sum(view[1:]) > storage.numel:
            raise CheckpointError(f"a view of storage {brief(key)} reaches beyond it; the file is damaged or hostile")
        _, offset, numel = view

        def numbers() -> Tensor:
            size = storage.dtype.itemsize
            return self._file.tensor(self._begins[key] + offset * size, numel * size)

        return self._views.setdefault((key, offset, numel), Storage(storage.dtype, numel, numbers))
