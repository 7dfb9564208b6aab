"""Reference cases on disk: `<golden>/<system>/<case>.safetensors` and `<case>.meta.json`.

A case is what another implementation made of one picture. Its tensors have four prefixes:

    sd/     the state dict, under the names of that implementation
    in/     the picture, uint8 RGB
    raw/    what its modules answered on the way
    det/    its final detections; masks are packed to bits

Two cases that name each other as `batch_mate` are the rows of one batch of unequal pictures: they make one `Group`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from export.errors import ExportError

Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One picture and everything the reference said about it. Tensors are read when they are asked for."""

    system: str  # name of the folder
    name: str
    path: Path = field(repr=False)
    meta: Mapping[str, Any] = field(repr=False)

    def state(self) -> dict[str, Tensor]:
        """The reference's state dict, under its own names."""
        with self._open("pt") as file:
            return {key.removeprefix("sd/"): file.get_tensor(key) for key in file.keys() if key.startswith("sd/")}  # noqa: SIM118

    def tensors(self, prefix: str) -> dict[str, NDArray[Any]]:
        """All tensors under `in`, `raw` or `det`, without that prefix; empty ones are left out."""
        with self._open("np") as file:
            found = {
                key.removeprefix(f"{prefix}/"): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118 - it is not iterable itself
                if key.startswith(f"{prefix}/")
            }
        return {key: value for key, value in found.items() if value.size}

    def has(self, key: str) -> bool:
        with self._open("np") as file:
            return key in file.keys()  # noqa: SIM118

    @cached_property
    def pictures(self) -> dict[str, NDArray[Any]]:
        """(H, W, 3) uint8 RGB each: `image_u8`, and `net_u8` where the case has it at the network's size too."""
        return self.tensors("in")

    @property
    def original_size(self) -> Size:
        """(height, width) of the picture that boxes and masks refer to."""
        size = self.meta.get("ori") or self.meta.get("ori_shape") or self.meta["det_masks_shape"][1:]
        return int(size[0]), int(size[1])

    @property
    def padded_to(self) -> Size | None:
        """(height, width) of the batch this picture was a row of; None where it ran alone."""
        padded = self.meta.get("padded_to")
        return None if padded is None else (int(padded[0]), int(padded[1]))

    @property
    def row(self) -> int:
        """Its place in that batch."""
        return int(self.meta.get("batch_row", 0))

    def masks(self) -> NDArray[np.bool_]:
        """The reference's masks (N, H, W)."""
        packed = self.tensors("det").get("masks_packed")
        count, height, width = self.meta["det_masks_shape"]
        if packed is None:
            return np.zeros((0, height, width), np.bool_)
        bits = np.unpackbits(packed, axis=1, count=height * width)
        return bits.reshape(count, height, width).astype(np.bool_)

    def _open(self, framework: str) -> Any:
        try:
            return safetensors.safe_open(self.path, framework=framework)
        except (safetensors.SafetensorError, OSError) as error:
            raise ExportError(f"{self.path} is not a safetensors file: {error}; copy the case again") from None


@dataclass(frozen=True)
class Group:
    """Cases that share weights and ran together: one, or the rows of one batch in their order."""

    cases: tuple[Case, ...]

    @property
    def system(self) -> str:
        return self.cases[0].system

    @property
    def name(self) -> str:
        return "+".join(case.name for case in self.cases)


def read_systems(golden: Path) -> dict[str, list[Group]]:
    """Every folder below `golden` that holds cases; folders that begin with `_` or `.` are something else.

    Raises:
        ExportError: no such folder, nothing in it, or a `.meta.json` that is missing or is not JSON.
    """
    if not golden.is_dir():
        raise ExportError(f"--golden {golden} is not a folder; give the one that holds <system>/<case>.safetensors")
    systems: dict[str, list[Group]] = {}
    for folder in sorted(path for path in golden.iterdir() if path.is_dir() and path.name[0] not in "._"):
        cases = [_read_case(folder.name, path) for path in sorted(folder.glob("*.safetensors"))]
        if cases:
            systems[folder.name] = _group(cases)
    if not systems:
        raise ExportError(f"--golden {golden} holds no <system>/<case>.safetensors")
    return systems


def _read_case(system: str, path: Path) -> Case:
    described = path.with_suffix(".meta.json")
    try:
        meta = json.loads(described.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{described} is missing; every case needs its description beside it") from None
    except ValueError as error:
        raise ExportError(f"{described} is not JSON: {error}") from None
    return Case(system, path.name.removesuffix(".safetensors"), path, meta)


def _group(cases: list[Case]) -> list[Group]:
    """Mates together, in the order of their rows; a case whose mate is absent stands alone."""
    by_name = {case.name: case for case in cases}
    groups: list[Group] = []
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            continue
        mate = by_name.get(str(case.meta.get("batch_mate", "")))
        together = [case] if mate is None or mate is case else sorted((case, mate), key=lambda one: one.row)
        seen.update(one.name for one in together)
        groups.append(Group(tuple(together)))
    return groups
