"""safetensors: a list of names, types, shapes and places as JSON, then the numbers. Nothing in it can be run.

    length of the list (8 bytes) | {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...} | numbers

(https://github.com/huggingface/safetensors, "Format".)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.contents import Opened
from models.checkpoints.errors import CheckpointError
from models.checkpoints.part import Part
from models.checkpoints.values import Storage, TensorView, brief, is_shape, tensor_view

HEADER = 1 << 25  # bytes of the list, at most
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def read(file: Part) -> Opened:
    """
    Raises:
        CheckpointError: not safetensors, or the list does not fit the numbers.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    if length > HEADER:
        raise CheckpointError(
            f"its list of tensors is {length} bytes long, at most {HEADER} are read; the file is damaged"
        )
    try:
        header = json.loads(file.read(8, length), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise CheckpointError("its list of tensors is no JSON; the file is damaged, get it again") from None
    if not isinstance(header, dict):
        raise CheckpointError("its list of tensors is no JSON object; the file is damaged, get it again")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("its __metadata__ should hold texts only; write it again")
    numbers = file.part(8 + length, len(file) - 8 - length)
    return Opened({name: _tensor(name, told, numbers) for name, told in header.items()}, "safetensors", (), metadata)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CheckpointError("its list of tensors has a name twice; the file is damaged or hostile")
    return found


def _tensor(name: str, told: Any, numbers: Part) -> TensorView:
    match told:
        case {"dtype": str() as code, "shape": list() as shape, "data_offsets": [int() as begin, int() as end]}:
            dtype, size = DTYPES.get(code), tuple(shape)
        case _:
            raise CheckpointError(f"tensor {brief(name)} lacks dtype, shape or data_offsets; the file is damaged")
    if dtype is None:
        raise CheckpointError(f"tensor {brief(name)} is of type {brief(code)}, which is not read; save it as F32")
    if not is_shape(size):
        raise CheckpointError(f"tensor {brief(name)} has shape {brief(size)}; the file is damaged or hostile")
    steps, step = [], 1
    for n in reversed(size):
        steps.append(step)
        step *= n
    if begin < 0 or end - begin != step * dtype.itemsize:
        raise CheckpointError(
            f"tensor {brief(name)} of shape {size} should take {step * dtype.itemsize} bytes, its place has "
            f"{end - begin}; the file is damaged or hostile"
        )
    data = numbers.part(begin, end - begin)
    steps = [n if step else 0 for n in steps]  # an empty tensor's steps mean nothing
    return tensor_view(Storage(dtype, step, lambda: data.tensor(0, len(data))), 0, size, tuple(reversed(steps)))


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """One tensor after the other, so that no second copy of them all is made. The file is there when it is whole.

    Args:
        progress: told how many bytes of numbers are written, of how many, after each tensor.

    Raises:
        CheckpointError: a type that safetensors does not have.
        OSError: the disk is full, or the folder may not be written to.
    """
    foreign = [name for name, tensor in tensors.items() if tensor.dtype not in CODES]
    if foreign:
        raise CheckpointError(
            f"{len(foreign)} tensors are of types that safetensors lacks ({brief(foreign[0])}); convert them"
        )
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # every one aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in names:
        tensor = tensors[name]
        length = tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": CODES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [at, at + length]}
        at += length
    listed = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    listed += b" " * (-len(listed) % 8)
    unfinished = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        with unfinished.open("xb") as file:
            file.write(len(listed).to_bytes(8, "little") + listed)
            done = 0
            for name in names:
                numbers = tensors[name].contiguous()
                if numbers.numel():
                    file.write(numbers.reshape(-1).view(torch.uint8).numpy().data)
                done += numbers.nbytes
                if progress is not None:
                    progress(done, at)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
