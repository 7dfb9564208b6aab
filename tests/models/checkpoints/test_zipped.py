"""torch's zip files: equal to what torch reads, and refused when the directory lies."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.checkpoints.zipped import read_members
from models.weights import CheckpointError, read_checkpoint
from tests.models.checkpoints.honest import few, part, zipped


def same(found: Tensor, wanted: Tensor) -> bool:
    return found.dtype == wanted.dtype and found.shape == wanted.shape and torch.equal(found, wanted)


def rewritten(
    path: Path, changes: dict[str, bytes | None] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    """The same zip written by Python, with members added, replaced (by the end of their name) or left out."""
    out = path.with_name("rewritten.pth")
    changes = dict(changes or {})
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", compression) as target:
        for member in source.infolist():
            data = changes.pop(member.filename.removeprefix("model/"), source.read(member))
            if data is not None:
                target.writestr(member.filename, data)
        for name, data in changes.items():
            target.writestr(f"model/{name}", data or b"")
    return out


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return zipped(few(), tmp_path / "model.pth")


def test_tensors_are_what_torch_reads(path: Path) -> None:
    found, wanted = read_checkpoint(path).tensors, torch.load(path)
    assert list(found) == list(wanted)
    assert all(same(found[name], wanted[name]) for name in wanted)


def test_every_type_view_and_layout_is_read(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    types = [torch.float64, torch.bfloat16, torch.int32, torch.int16, torch.int8, torch.uint8, torch.complex64]
    types += [torch.float8_e4m3fn, torch.uint16]
    state = {
        "transposed": base.view(4, 6).t(),
        "piece": base[5:9],
        "twice": base,
        "shown": torch.ones(1).expand(3, 4),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(3.0),
        **{str(dtype): torch.tensor([1, 2, 3]).to(dtype) for dtype in types},
    }
    found = read_checkpoint(zipped(state, tmp_path / "model.pth")).tensors
    for name, wanted in state.items():
        assert same(
            found[name].float() if "float8" in name else found[name],
            wanted.detach().float() if "float8" in name else wanted.detach(),
        )
    assert found["piece"].untyped_storage().data_ptr() == found["twice"].untyped_storage().data_ptr()


def test_a_zip_without_checksums_is_read(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(few(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(read_checkpoint(path).tensors) == len(few())


def test_a_zip_packed_anew_is_read(path: Path) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        found = read_checkpoint(rewritten(path, compression=compression)).tensors
        assert all(same(found[name], wanted) for name, wanted in few().items())


def test_a_zip_of_more_than_four_gigabytes_has_its_numbers_elsewhere() -> None:
    """Sizes of 64 bits stand in an extra field, the place of the directory in a record of its own."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive, archive.open("a/data.pkl", "w", force_zip64=True) as member:
        member.write(b"N.")
    plain = data.getvalue()
    at = plain.index(b"PK\1\2")
    entry = bytearray(plain[at : plain.index(b"PK\5\6")])
    extra = struct.pack("<HH3Q", 1, 24, 2, 2, 0)
    entry[20:28], entry[42:46] = b"\xff" * 8, b"\xff" * 4
    entry[30:32] = struct.pack("<H", len(extra))
    wide = bytes(entry[: 46 + len("a/data.pkl")]) + extra
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(wide), at)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at + len(wide), 1)
    end = b"PK\5\6" + b"\0" * 4 + b"\xff" * 12 + b"\0\0"
    members = read_members(part(plain[:at] + wide + record + locator + end))
    assert members["a/data.pkl"].bytes().tolist() == [*b"N."]


@pytest.mark.parametrize("length", [3, 30, 400, 1_000, -500, -30, -22, -5, -1])
def test_a_file_that_breaks_off_is_refused(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"incomplete|damaged|makes no sense"):
        read_checkpoint(path)


def test_changed_numbers_are_noticed(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(few()["backbone.bn1.weight"].numpy().tobytes())
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(CheckpointError, match="checksum"):
        read_checkpoint(path)


def test_a_bomb_is_not_unpacked(path: Path) -> None:
    bomb = rewritten(path, {"bomb": b"\0" * (50 << 20)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"grow from \d+ to 52428800 bytes.*zip bomb"):
        read_checkpoint(bomb)


def test_a_member_longer_than_it_says_is_refused(path: Path) -> None:
    """The directory tells 100 bytes of one that unpacks to many more."""
    packed = rewritten(path, {"data.pkl": b"N" * 5_000 + b"."}, zipfile.ZIP_DEFLATED)
    data = bytearray(packed.read_bytes())
    entry = data.rindex(b"model/data.pkl") - 46
    data[entry + 24 : entry + 28] = struct.pack("<I", 100)
    packed.write_bytes(data)
    with pytest.raises(CheckpointError, match="not as long as it says"):
        read_checkpoint(packed)


def test_members_over_each_other_are_refused(path: Path) -> None:
    """All entries name the same bytes, as in the bomb that needs no nesting (Fifield 2019, "
    "https://www.bamsoftware.com/hacks/zipbomb/)."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first, second = [member for member in archive.infolist() if "/data/" in member.filename][:2]
    entry = data.rindex(second.filename.encode()) - 46
    name = data.rindex(first.filename.encode())
    data[entry + 42 : entry + 46] = struct.pack("<I", first.header_offset)
    assert name
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not where the list says|over each other"):
        read_checkpoint(path)


def test_a_member_inside_another_is_refused() -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a/data/1", b"x" * 10)
    local = inner.getvalue()[: inner.getvalue().index(b"PK\1\2")]
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("a/data/0", local)
    data = outer.getvalue()
    at = data.index(b"PK\1\2")
    entry = bytearray(inner.getvalue()[inner.getvalue().index(b"PK\1\2") : inner.getvalue().index(b"PK\5\6")])
    entry[42:46] = struct.pack("<I", 30 + len("a/data/0"))
    directory = data[at : data.index(b"PK\5\6")] + bytes(entry)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, len(directory), at, 0)
    with pytest.raises(CheckpointError, match="over each other"):
        read_members(part(data[:at] + directory + end))


@pytest.mark.parametrize(
    "name",
    ["../evil", "model/../../evil", "/etc/evil", "C:/evil", "model\\..\\evil", "model//evil", "./evil", "model/evil\n"],
)
def test_a_name_that_means_another_place_is_refused(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(CheckpointError, match="another place"):
        read_checkpoint(path)


def test_a_name_twice_is_refused(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data.pkl", b"N.")
    with pytest.raises(CheckpointError, match="twice"):
        read_checkpoint(path)


def test_something_before_the_zip_is_refused(path: Path) -> None:
    path.write_bytes(b"PK" + b"x" * 100 + path.read_bytes())
    with pytest.raises(CheckpointError, match=r"put before it|not where it says"):
        read_checkpoint(path)


def test_an_encrypted_member_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"model/data.pkl") - 46
    data[entry + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="encrypted"):
        read_checkpoint(path)


def test_a_directory_of_gigabytes_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\6\6")
    data[at + 40 : at + 48] = struct.pack("<Q", 1 << 40)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="list of members is"):
        read_checkpoint(path)


def test_missing_numbers_are_told(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert "model/data/0" in archive.namelist()
    out = path.with_name("out.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for member in source.infolist():
            if member.filename != "model/data/0":
                target.writestr(member.filename, source.read(member))
    with pytest.raises(CheckpointError, match="'model/data/0', which is not there"):
        read_checkpoint(out)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.pkl": None}, "has one data.pkl, this zip has 0"),
        ({"constants.pkl": b"N."}, "TorchScript"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"data.pkl": b"N."}, "dictionary of tensors"),
        ({"data.pkl": b""}, "breaks off"),
    ],
)
def test_other_zips_are_refused(path: Path, changes: dict[str, bytes | None], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(rewritten(path, changes))


def test_a_zip_with_the_checkpoint_inside_says_unpack(path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "download.zip", "w") as archive:
        archive.write(path, "weights/model.pth")
    with pytest.raises(CheckpointError, match=r"weights/model\.pth.*unpack it first"):
        read_checkpoint(tmp_path / "download.zip")
