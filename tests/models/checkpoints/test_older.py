"""torch's files before 1.6 and before 0.1.11."""

from __future__ import annotations

import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from models.checkpoints import legacy as legacy_files
from models.weights import CheckpointError, read_checkpoint
from tests.models.checkpoints.honest import few, legacy, old_tar
from tests.models.checkpoints.hostile import name, reduce, text


def some() -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.tensor([7, 8]), c=torch.tensor(1.5))


def test_tensors_are_what_torch_reads(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    state = few() | {"whole": base, "piece": base[3:5], "turned": torch.randn(3, 4).t()}
    path = legacy({"model": state, "epoch": 3}, tmp_path / "model.pth")
    found, wanted = read_checkpoint(path), torch.load(path)["model"]
    assert found.container == "torch before 1.6"
    assert found.metadata == {"epoch": "3"}
    assert list(found.tensors) == list(wanted)
    assert all(torch.equal(found.tensors[name], wanted[name]) for name in wanted)


def test_a_whole_module_gives_its_parameters_and_buffers(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 2)))
    for path in (legacy(module, tmp_path / "old.pth"), tmp_path / "new.pth"):
        if path.name == "new.pth":
            torch.save({"model": module}, path)
        found = read_checkpoint(path)
        wanted = module.state_dict()
        assert sorted(found.tensors) == sorted(wanted)
        assert all(torch.equal(found.tensors[key], wanted[key]) for key in wanted)
        assert "torch.nn.modules.conv.Conv2d" in found.foreign


@pytest.mark.parametrize("length", [1, 10, 20, 60, 200, 900, -300, -8, -1])
def test_a_file_that_breaks_off_is_refused(tmp_path: Path, length: int) -> None:
    path = legacy(few(), tmp_path / "model.pth")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"breaks off|makes no sense|not a safetensors|numbers"):
        read_checkpoint(path)


def written(
    tmp_path: Path, *, keys: object = ("0",), numel: int = 4, promised: bytes = b"K\x04", view: bytes = b"N"
) -> Path:
    """One storage of four floats, told in the given way."""
    head = [pickle.dumps(value, 2) for value in (legacy_files.MAGIC, legacy_files.PROTOCOL, {"little_endian": True})]
    storage = b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu") + promised + view + b"tQ"
    tensor = reduce(name("torch._utils._rebuild_tensor"), storage, b"K\x00", b"K\x02\x85", b"K\x01\x85")
    listed = pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2)
    path = tmp_path / "model.pth"
    path.write_bytes(
        b"".join(head) + b"\x80\x02}" + text("w") + tensor + b"s." + listed + struct.pack("<q4f", numel, 1, 2, 3, 4)
    )
    return path


def view(offset: int, numel: int) -> bytes:
    return b"(" + text("v") + b"K%cK%ct" % (offset, numel)


def test_a_view_of_a_storage_begins_where_it_says(tmp_path: Path) -> None:
    assert read_checkpoint(written(tmp_path)).tensors["w"].tolist() == [1, 2]
    assert read_checkpoint(written(tmp_path, view=view(2, 2))).tensors["w"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"keys": ()}, "no numbers in it"),
        ({"keys": ("0", "0")}, "listed twice"),
        ({"keys": ("1",)}, "used nowhere"),
        ({"keys": 5}, "no list of keys"),
        ({"keys": ([],)}, "no list of keys"),
        ({"numel": 5}, "promises 4"),
        ({"numel": -1}, "promises 4"),
        ({"promised": b"K\x05", "numel": 5}, "breaks off"),
        ({"promised": b"J\xff\xff\xff\xff"}, "numbers"),
        ({"view": view(3, 2)}, "reaches beyond"),
        ({"view": view(2, 1)}, "reaches element 2 of a storage that has 1"),
        ({"view": b"K\x01"}, "reaches beyond"),
    ],
)
def test_a_storage_that_lies_is_refused(tmp_path: Path, lie: dict[str, object], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(written(tmp_path, **lie))  # type: ignore[arg-type]


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    path = legacy(few(), tmp_path / "model.pth")
    path.write_bytes(path.read_bytes().replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_checkpoint(path)


def test_a_tar_is_what_torch_reads(tmp_path: Path) -> None:
    path = old_tar(some(), tmp_path / "model.pth")
    found, wanted = read_checkpoint(path), torch.load(path, weights_only=False)
    assert found.container == "torch tar"
    assert all(torch.equal(found.tensors[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("length", [600, 1_500, 3_000])
def test_a_tar_that_breaks_off_is_refused(tmp_path: Path, length: int) -> None:
    path = old_tar(some(), tmp_path / "model.pth")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"breaks off|unpack it first"):
        read_checkpoint(path)


def test_another_tar_says_unpack(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"x")
    with tarfile.open(tmp_path / "download.tar", "w") as archive:
        archive.add(tmp_path / "model.pth", "model.pth")
    with pytest.raises(CheckpointError, match=r"'model\.pth'.*unpack it first"):
        read_checkpoint(tmp_path / "download.tar")


def test_a_tensor_of_a_tar_that_leaves_its_storage_is_refused(tmp_path: Path) -> None:
    path = old_tar(some(), tmp_path / "model.pth")
    data = path.read_bytes()
    layout = struct.pack("<ii5q", 2, 0, 2, 3, 3, 1, 0)
    assert data.count(layout) == 1
    path.write_bytes(data.replace(layout, struct.pack("<ii5q", 2, 0, 2, 3, 4, 1, 0)))
    with pytest.raises(CheckpointError, match="reaches element 7 of a storage that has 6"):
        read_checkpoint(path)
