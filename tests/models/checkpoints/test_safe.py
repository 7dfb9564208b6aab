"""safetensors, read and written: the library agrees on both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.checkpoints.errors import CheckpointError
from models.checkpoints.safe import DTYPES, write
from models.weights import read_checkpoint
from tests.models.checkpoints.honest import few


def every_type() -> dict[str, torch.Tensor]:
    return {str(dtype): torch.tensor([1, 0, 1, 1, 0]).to(dtype) for dtype in DTYPES.values()} | few()


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name].double(), tensor.double())
        if not tensor.is_complex()
        else torch.equal(found[name], tensor)
        for name, tensor in wanted.items()
    )


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file(every_type(), tmp_path / "m.safetensors", {"format": "pt"})
    found = read_checkpoint(tmp_path / "m.safetensors")
    assert equal(found.tensors, every_type())
    assert found.metadata == {"format": "pt"}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    wanted = every_type() | {"turned": torch.randn(3, 4).t(), "shown": torch.ones(1).expand(4)}
    write(tmp_path / "m.safetensors", wanted, {"a": "b"})
    assert equal(load_file(tmp_path / "m.safetensors"), wanted)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == {"a": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def file_of(header: object, numbers: bytes, tmp_path: Path) -> Path:
    listed = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(listed).to_bytes(8, "little") + listed + numbers)
    return path


def one(**changes: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (one(data_offsets=[0, 12]), "should take 8 bytes"),
        (one(data_offsets=[8, 0]), "should take 8 bytes"),
        (one(data_offsets=[4, 12]), "breaks off"),
        (one(data_offsets=[-8, 0]), "should take 8 bytes"),
        (one(data_offsets=[0, 1 << 70]), "should take 8 bytes"),
        (one(data_offsets="x"), "lacks"),
        (one(shape=[-2]), "has shape"),
        (one(shape=[2.0]), "has shape"),
        (one(shape=[1] * 20), "has shape"),
        (one(shape=[1 << 61, 1 << 61], data_offsets=[0, 8]), "should take"),
        (one(dtype="F3"), "type 'F3'"),
        ({"w": 3}, "lacks"),
        ({"__metadata__": {"a": 1}}, "texts only"),
        ({}, "dictionary of tensors"),
        (b'{"w":1,"w":2}', "a name twice"),
        (b"{not json", "no JSON"),
        (b'{"a":' * 100_000, "no JSON"),
    ],
)
def test_a_list_that_lies_is_refused(header: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(file_of(header, b"\0" * 8, tmp_path))


def test_a_list_of_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes((1 << 35).to_bytes(8, "little") + b"{}" + b" " * 100)
    with pytest.raises(CheckpointError, match="bytes long, at most"):
        read_checkpoint(tmp_path / "m.safetensors")
