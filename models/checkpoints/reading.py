"""A checkpoint of any kind, by its first bytes.

file -> container -> tree -> weights -> tensors
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from torch import Tensor

from models.checkpoints import flat, legacy, safe, tar, zipped
from models.checkpoints.contents import Opened, classes_of, remarks, weights_of
from models.checkpoints.dialect import dialect_of
from models.checkpoints.errors import CheckpointError
from models.checkpoints.part import Part
from models.checkpoints.values import Storage, TensorView

SPREAD = 2 << 30  # bytes that tensors may come to beyond the file's own: one number can be shown as many
MOST = 64 << 30  # bytes of a file
HEAD = 512

# What people hand over by mistake, and what to do then.
MISTAKEN = (
    (b"version https://git-lfs", "a pointer of git lfs, not the file itself; run git lfs pull"),
    (b"<", "a web page, so the download failed; get the file itself"),
    (b"\x1f\x8b", "packed with gzip; unpack it first"),
    (b"BZh", "packed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "packed with xz; unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes; it holds no PyTorch weights"),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """
    Args:
        tensors: by the names of whoever saved them, without a wrapper's prefix (`module.`). Some may be views of one
        memory. dialect: the code base that names weights so: torchvision, detectron2, mmdetection, maskrcnn_benchmark,
            detectron_pytorch, or maskserve for our own names; None when it is none of these.
        classes: in label order, where the file tells them.
        metadata: short texts and numbers that stood beside the weights.
        container: the kind of file.
        foreign: names of functions and classes that the file asked for; they were not even looked up.
        left_out: entries among the weights that are no tensors.
    """

    tensors: dict[str, Tensor]
    dialect: str | None
    classes: tuple[str, ...] | None
    metadata: Mapping[str, str]
    container: str
    foreign: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """What the weights take, without those that are the same memory counted twice."""
        return sum(
            {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for tensor in self.tensors.values()
            }.values()
        )


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of any kind; `torch.load` and `pickle` are not involved.

    Raises:
        CheckpointError: one sentence that says what was expected, what was found and what to do.
    """
    with _reading(path) as file:
        opened = _opened(file)
        views, left_out = weights_of(opened.tree)
        tensors = _loaded(views, len(file) + SPREAD)
        return Checkpoint(
            tensors,
            dialect_of(tensors),
            _classes(opened),
            dict(opened.metadata) or remarks(opened.tree),
            opened.container,
            opened.foreign,
            left_out,
        )


def read_classes(path: Path) -> tuple[str, ...] | None:
    """Names of the classes in label order, where the checkpoint tells them; its weights stay in the file.

    Raises:
        CheckpointError: as `read_checkpoint`.
    """
    with _reading(path) as file:
        return _classes(_opened(file))


@contextmanager
def _reading(path: Path) -> Iterator[Part]:
    """The file, while it is open; whatever stops the reading then says which file it was."""
    try:
        with _open(path) as stream:
            yield Part(stream, 0, os.fstat(stream.fileno()).st_size)
    except CheckpointError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except MemoryError:
        raise CheckpointError(f"cannot read {path}: there is not enough memory for its weights") from None


def _open(path: Path) -> BinaryIO:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise CheckpointError("it does not exist; check the path") from None
    if not stat.S_ISREG(mode):
        raise CheckpointError("it is no file; name the checkpoint itself")
    return cast(BinaryIO, path.open("rb", buffering=0))


def _opened(file: Part) -> Opened:
    """Choose by the first bytes; what a file is called does not count."""
    if len(file) > MOST:
        raise CheckpointError(f"it is {len(file)} bytes long, at most {MOST} are read")
    head = file.read(0, min(HEAD, len(file)))
    if head.startswith(b"PK"):
        return zipped.read(file)
    if head[257:262] == b"ustar":
        return tar.read(file)
    if head.startswith(legacy.BEGINNINGS):
        return legacy.read(file)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return safe.read(file)
    for beginning, what in MISTAKEN:
        if head.startswith(beginning):
            raise CheckpointError(f"a checkpoint is expected, and it is {what}")
    if head[:1] in (b"\x80", b"(", b"}", b"c", b"]"):
        return flat.read(file)
    raise CheckpointError(
        "it is not a safetensors file, a torch file or a pickle of arrays: it "
        + (f"begins with the bytes {head[:8].hex(' ')}" if head else "is empty")
        + "; check that it is the checkpoint, and whole"
    )


def _loaded(views: Mapping[str, TensorView], limit: int) -> dict[str, Tensor]:
    """Tensors that share a storage share it here too, and no storage is read twice.

    Args:
        limit: bytes that all tensors together may come to.
    """
    spread = sum(view.bytes for view in views.values())
    if spread > limit:
        raise CheckpointError(
            f"its tensors would take {spread} bytes, and the file has {limit - SPREAD}: it shows the same numbers "
            "again and again; it is hostile, or save it with every tensor .clone()d"
        )
    numbers: dict[Storage, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, view in views.items():
        if view.storage not in numbers:
            numbers[view.storage] = view.storage.load()
        tensors[name] = view.of(numbers[view.storage])
    return tensors


def _classes(opened: Opened) -> tuple[str, ...] | None:
    """From the metadata that `convert` wrote, or as mmdetection tells them."""
    try:
        told = json.loads(opened.metadata.get("classes", "null"))
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, list) and told and all(isinstance(name, str) for name in told):
        return tuple(told)
    return classes_of(opened)
