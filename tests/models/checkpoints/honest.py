"""Checkpoints as the code bases write them."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import tarfile
import types
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoints.part import Part

TYPES = {"float32": torch.float32, "int64": torch.int64}


def part(data: bytes) -> Part:
    return Part(io.BytesIO(data), 0, len(data))


def keys_of(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Names, types and shapes of a full-size model, from a key list."""
    listed = json.loads(path.read_text())["keys"]
    return {name: (TYPES[dtype], tuple(shape)) for name, (dtype, shape) in listed.items()}


def shown(path: Path) -> OrderedDict[str, Tensor]:
    """A full-size state dict that takes no room: every tensor shows one number again and again."""
    return OrderedDict(
        (name, torch.zeros((), dtype=dtype).expand(shape)) for name, (dtype, shape) in keys_of(path).items()
    )


def full(path: Path) -> OrderedDict[str, Tensor]:
    """A full-size state dict, every tensor filled with its number in the list."""
    keys = keys_of(path).items()
    return OrderedDict((name, torch.full(shape, i, dtype=dtype)) for i, (name, (dtype, shape)) in enumerate(keys))


def few() -> OrderedDict[str, Tensor]:
    """A few tensors of several types."""
    generator = torch.Generator().manual_seed(1)
    return OrderedDict(
        {
            "backbone.conv1.weight": torch.randn(4, 3, 7, 7, generator=generator),
            "backbone.bn1.weight": torch.randn(4, generator=generator),
            "backbone.bn1.num_batches_tracked": torch.tensor(7),
            "head.half": torch.randn(2, 3, generator=generator).half(),
            "head.mask": torch.tensor([True, False]),
            "head.nothing": torch.zeros(0, 3),
        }
    )


def legacy(value: object, path: Path) -> Path:
    """As torch before 1.6 saved."""
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def zipped(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def flat(value: object, path: Path, protocol: int = 2) -> Path:
    """As detectron2's model zoo: arrays for tensors."""
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def arrays(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def history() -> Any:
    """An object of mmengine's, whose class is gone once it is saved (see `forget_mmengine`)."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self._history = np.arange(5.0)
            self._statistics_methods = {"mean": len}

        def __setstate__(self, state: object) -> None:
            raise AssertionError("a class out of a checkpoint was used")

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[module.__name__] = module
    return HistoryBuffer()


def forget_mmengine() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmengine"]:
        del sys.modules[name]


def old_tar(state: Mapping[str, Tensor], path: Path) -> Path:
    """As torch before 0.1.11 saved: a tar of storages, tensors and the object that points at them by number."""

    storages, tensors = io.BytesIO(), io.BytesIO()
    kinds = {torch.float32: "FloatStorage", torch.int64: "LongStorage"}
    storages.write(pickle.dumps(len(state), 2))
    tensors.write(pickle.dumps(len(state), 2))
    for i, tensor in enumerate(state.values()):
        kind = getattr(torch, kinds[tensor.dtype])
        storages.write(pickle.dumps((100 + i, "cpu", kind), 2) + struct.pack("<q", tensor.numel()))
        storages.write(tensor.numpy().tobytes())
        tensors.write(pickle.dumps((200 + i, 100 + i, torch.FloatTensor), 2))
        steps = tensor.contiguous().stride()
        tensors.write(struct.pack(f"<ii{2 * tensor.ndim + 1}q", tensor.ndim, 0, *tensor.shape, *steps, 0))
    storages.write(pickle.dumps([], 2))

    numbers = {id(tensor): 200 + i for i, tensor in enumerate(state.values())}
    points = io.BytesIO()

    class Pointing(pickle.Pickler):
        def persistent_id(self, obj: object) -> str | None:
            return str(numbers[id(obj)]) if isinstance(obj, Tensor) else None

    Pointing(points, 2).dump(OrderedDict(state))
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("sys_info", b""), ("pickle", points), ("tensors", tensors), ("storages", storages)):
            content = data if isinstance(data, bytes) else data.getvalue()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
