"""Hostile files: whatever they ask for, nothing is run, and reading ends soon."""

from __future__ import annotations

import contextlib
import io
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from models.checkpoints import legacy
from models.checkpoints.machine import Machine
from models.checkpoints.opcodes import load
from models.weights import CheckpointError, read_checkpoint
from tests.conftest import ROOT
from tests.models.checkpoints.honest import few, part
from tests.models.checkpoints.hostile import CERTAIN, PICKLES, Payload, name, reduce, text

# Reads files while every event that running something would cause is watched for (https://peps.python.org/pep-0578/).
WATCHED = """
import sys
from pathlib import Path
from models.weights import CheckpointError, read_checkpoint
import torch  # all that reading imports is imported now
watched = ("import", "exec", "compile", "pickle.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.",
           "socket.", "shutil.", "ctypes.", "code.__new__", "marshal.", "os.remove", "os.rename", "os.mkdir",
           "webbrowser.")
seen, watching = [], False
def hook(event, args):
    if watching and (event.startswith(watched) or event == "open" and not str(args[0]).startswith(sys.argv[1])):
        seen.append((event, str(args)[:80]))
sys.addaudithook(hook)
verdicts = {}
for path in sorted(Path(sys.argv[1]).glob("*.*")):
    watching = True
    try:
        read_checkpoint(path)
        verdict = "read"
    except CheckpointError:
        verdict = "refused"
    watching = False
    verdicts[path.name] = verdict
print(len(verdicts), "files", seen)
"""


def as_zip(pickled: bytes, path: Path) -> Path:
    """A file of torch's whose pickle is another one."""
    honest = io.BytesIO()
    torch.save(few(), honest)
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, pickled if member.filename.endswith("data.pkl") else source.read(member))
    return path


def as_legacy(pickled: bytes, path: Path, where: int) -> Path:
    """An old file of torch's, with another pickle for the system (2), the object (3) or the list of keys (4)."""
    honest: tuple[object, ...] = (legacy.MAGIC, legacy.PROTOCOL, {"little_endian": True}, {}, [])
    head = [pickle.dumps(value, 2) for value in honest]
    head[where] = pickled
    path.write_bytes(b"".join(head))
    return path


def write_all(folder: Path, marker: Path) -> list[Path]:
    """Every payload in every container."""
    for title, payload in PICKLES.items():
        data = payload(marker)
        (folder / f"{title}.pkl").write_bytes(data)
        as_zip(data, folder / f"{title}.zip.pth")
        for where in (2, 3, 4):
            as_legacy(data, folder / f"{title}.{where}.pth", where)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("payload", CERTAIN)
def test_the_attacks_are_real(payload: Payload, tmp_path: Path) -> None:
    """Python's own machine runs them."""
    marker = tmp_path / "ran"
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(Exception):  # after it has run
        pickle.loads(payload(marker))
    assert marker.exists()


@pytest.mark.parametrize("title", PICKLES)
def test_a_machine_of_our_own_runs_nothing(title: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with contextlib.suppress(CheckpointError):
        load(Machine(part(PICKLES[title](marker))))
    assert not marker.exists()


def test_nothing_is_run_imported_or_opened_whatever_the_container(tmp_path: Path) -> None:
    folder, marker = tmp_path / "files", tmp_path / "ran"
    folder.mkdir()
    files = write_all(folder, marker)
    command = [sys.executable, "-c", WATCHED, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{len(files)} files []"
    assert not marker.exists()


def test_who_asks_for_a_shell_is_told_to_be_hostile(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(PICKLES["os_system"](tmp_path / "ran"))
    with pytest.raises(CheckpointError, match=r"model\.pkl.*posix\.system.*hostile.*nothing of it was run"):
        read_checkpoint(path)


def test_a_foreign_class_is_noted_and_the_weights_are_read(tmp_path: Path) -> None:
    tensors = text("a") + reduce(name("nobody.knows.This"), text("x")) + b"}" + text("b") + b"K\x01sb" + b"s"
    array = pickle.dumps(few()["backbone.bn1.weight"].numpy(), 2)[2:-1]
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02}" + text("extra") + b"}" + tensors + b"s" + text("w") + array + b"s.")
    found = read_checkpoint(path)
    assert found.foreign == ("nobody.knows.This",)
    assert list(found.tensors) == ["w"]
    assert found.left_out == ("extra",)


def pid(*, kind: bytes | None = None, key: bytes | None = None, numel: bytes = b"K\x04") -> bytes:
    """How torch points at a storage."""
    parts = (text("storage"), kind or name("torch.FloatStorage"), key or text("0"), text("cpu"), numel)
    return b"(" + b"".join(parts) + b"t"


@pytest.mark.parametrize(
    ("pid", "says"),
    [
        (text("x"), "where a storage is expected"),
        (b"N", "where a storage is expected"),
        (b"(" + text("module") + name("posix.system") + text("a") + text("b") + b"t", "hostile"),
        (pid(kind=name("posix.system")), "hostile"),
        (pid(kind=name("builtins.list")), "torch's storages"),
        (pid(kind=name("torch.QInt8Storage")), "torch's storages"),
        (pid(kind=text("FloatStorage")), "torch's storages"),
        (pid(key=text("../data.pkl")), "not there"),
        (pid(key=b"]"), "where a storage is expected"),
        (pid(numel=b"M\x00\x10"), "promises 4096 numbers"),
        (pid(numel=b"J\xff\xff\xff\xff"), "promises -1 numbers"),
        (pid(numel=text("588")), "promises '588' numbers"),
        (pid(numel=b"\x8a\x0f" + b"\xff" * 14 + b"\x7f"), "promises a huge number"),
    ],
)
def test_a_persistent_id_that_is_no_storage_is_refused(pid: bytes, says: str, tmp_path: Path) -> None:
    path = as_zip(b"\x80\x02}" + text("w") + pid + b"Qs.", tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(path)


def test_a_persistent_id_in_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02" + text("x") + b"Q.")
    with pytest.raises(CheckpointError, match="kept elsewhere"):
        read_checkpoint(path)


STORAGE = pid(numel=b"M\x4c\x02") + b"Q"  # 588 floats


@pytest.mark.parametrize("function", ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"])
@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("(0, (589,), (1,))", "reaches element 589 of a storage that has 588"),
        ("(1, (588,), (1,))", "reaches element 589"),
        ("(588, (1,), (1,))", "reaches element 589"),
        ("(0, (2,), (588,))", "reaches element 589"),
        ("(0, (2**40, 2**40), (1, 1))", "reaches"),
        ("(2**61, (), ())", "reaches"),
        ("(-1, (1,), (1,))", "whole numbers from 0 on"),
        ("(0, (-1,), (1,))", "whole numbers from 0 on"),
        ("(5, (2,), (-1,))", "whole numbers from 0 on"),
        ("(0, (2, 2), (1,))", "whole numbers from 0 on"),
        ("(0, (True,), (1,))", "whole numbers from 0 on"),
        ("(0, (1.5,), (1,))", "whole numbers from 0 on"),
        ("(0, '2', '1')", "whole numbers from 0 on"),
        ("(0, [2], [1])", "whole numbers from 0 on"),
        ("(None, (2,), (1,))", "whole numbers from 0 on"),
        ("(2**70, (2,), (1,))", "a huge number"),
        ("(0, (1,) * 17, (1,) * 17)", "up to 16"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(function: str, layout: str, says: str, tmp_path: Path) -> None:
    parts = b"".join(pickle.dumps(value, 2)[2:-1] for value in eval(layout))
    tail = {
        "_rebuild_tensor": b"",
        "_rebuild_tensor_v2": b"\x89}",
        "_rebuild_tensor_v3": b"\x89}" + name("torch.float32"),
    }
    rebuilt = reduce(name(f"torch._utils.{function}"), STORAGE, parts, tail[function])
    path = as_zip(b"\x80\x02}" + text("w") + rebuilt + b"s.", tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(path)


def test_one_number_shown_as_a_billion_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    with pytest.raises(CheckpointError, match="again and again"):
        read_checkpoint(path)


def test_many_names_of_a_large_view_are_refused(tmp_path: Path) -> None:
    shown = torch.zeros(1).expand(1 << 14, 1 << 14)  # 1 GB
    torch.save({f"w{i}": shown for i in range(9)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="again and again"):
        read_checkpoint(tmp_path / "model.pth")
