"""The graph made ready once: same answers, one copy of the weights, whoever is first; the original where it fails."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from server.engines import load_engine
from server.engines.aligned_weights import large_weights, write_aligned
from server.engines.ready_graph import ready_graph, ready_options
from server.errors import UnsupportedModelFile
from server.shared_file import shared_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux seals files in memory")

WEIGHTS_MB = 16


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = shared_file("test", 0)
    yield descriptor
    os.close(descriptor)


def large(path: Path) -> Path:
    """A network of one convolution with `WEIGHTS_MB` of weights."""
    channels = int((WEIGHTS_MB * 2**20 / 36) ** 0.5)
    weights = np.random.default_rng(0).normal(size=(channels, channels, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Expand", ["planes", "shape"], ["wide"]),
            helper.make_node("Conv", ["wide", "weights"], ["answer"], pads=[1, 1, 1, 1]),
        ],
        "large",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 1])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", channels, 8, 8])],
        [
            numpy_helper.from_array(np.array([1, channels, 1, 1], np.int64), "shape"),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_the_answer_is_that_of_the_original_to_the_bit(tiny_bundle: Path) -> None:
    path = tiny_bundle / "model.onnx"
    inputs = {
        "images": np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8),
        "sizes": np.array([[64, 96], [32, 48]], np.int32),
    }
    original = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {value.name for value in original.get_inputs()}
    expected = original.run(None, {name: tensor for name, tensor in inputs.items() if name in names})
    engine = load_engine(path, 2)
    for answer in (engine.run(inputs), engine.run_alone(inputs)):
        for mine, theirs in zip(answer.values(), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_large_weights_begin_at_cache_lines_and_take_their_room_once(tmp_path: Path, file: int) -> None:
    path = large(tmp_path / "large.onnx")
    place = ready_graph(path, file)
    assert place is not None
    status = os.fstat(file)
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as graph:
        weights = large_weights(graph)
        assert sum(weight.size for weight in weights) > 0.9 * WEIGHTS_MB * 2**20
        assert all((weight.length + 4) % 64 == 0 for weight in weights)
    assert status.st_blocks * 512 < 1.1 * WEIGHTS_MB * 2**20
    inputs = {"images": np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), np.uint8)}
    answers = [
        onnxruntime.InferenceSession(*arguments, providers=["CPUExecutionProvider"]).run(None, inputs)[0]
        for arguments in ((place, ready_options()), (str(path),))
    ]
    np.testing.assert_array_equal(*answers)


def test_a_graph_without_large_weights_is_copied_as_it_is(file: int) -> None:
    empty = struct.pack("<IHHi", 8, 4, 4, 4)  # a reference to a table without fields, and where those are described
    draft = shared_file("draft", 0)
    os.write(draft, empty)
    write_aligned(draft, file)
    os.close(draft)
    assert os.pread(file, 100, 0) == empty
    assert large_weights(empty) == []


def test_it_is_made_once_and_cannot_be_changed(tiny_bundle: Path, file: int) -> None:
    place = ready_graph(tiny_bundle / "model.onnx", file)
    assert place is not None
    written = os.fstat(file).st_size
    assert written > 0
    with pytest.raises(PermissionError):
        os.pwrite(file, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(file, 0)
    assert ready_graph(Path("not looked at again"), file) == place
    assert os.fstat(file).st_size == written


def test_what_somebody_left_half_written_is_written_again(tiny_bundle: Path, file: int) -> None:
    os.write(file, b"half" * 10**6)
    place = ready_graph(tiny_bundle / "model.onnx", file)
    assert place is not None
    onnxruntime.InferenceSession(place, ready_options(), providers=["CPUExecutionProvider"])


def test_processes_that_come_together_make_it_once(tiny_bundle: Path, file: int) -> None:
    code = (
        "import sys; from pathlib import Path; from server.engines import ready_graph as it; write = it._write\n"
        "it._write = lambda *args: (print('writes', flush=True), write(*args))\n"
        "print(it.ready_graph(Path(sys.argv[1]), int(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(tiny_bundle / "model.onnx"), str(file)]
    three = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[file]) for _ in range(3)]
    told = [process.communicate(timeout=60)[0].split() for process in three]
    place = f"/proc/self/fd/{file}"
    assert sorted(told) == [[place], [place], ["writes", place]]


def test_the_weights_are_in_memory_once(tmp_path: Path) -> None:
    path = large(tmp_path / "large.onnx")
    code = (
        "import sys; from pathlib import Path; from server.engines import load_engine\n"
        "def anonymous(): return int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])\n"
        "load_engine(Path(sys.argv[1]), 2).close()\n"
        "import ctypes; ctypes.CDLL(None).malloc_trim(0); before = anonymous()\n"
        "engine = load_engine(Path(sys.argv[1]), 2); ctypes.CDLL(None).malloc_trim(0); print(anonymous() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) / 1024 < WEIGHTS_MB / 2  # two sessions' own copies would be twice `WEIGHTS_MB`


def test_what_runs_took_comes_back_when_asked_for(tiny_bundle: Path) -> None:
    code = (
        "import ctypes, sys; import numpy as np; from pathlib import Path; from server.engines import load_engine\n"
        "def anonymous():\n"
        "    ctypes.CDLL(None).malloc_trim(0)\n"
        "    return int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])\n"
        "engine = load_engine(Path(sys.argv[1]), 2)\n"
        "def inputs(side): return dict(images=np.zeros((1, side, side, 3), 'u1'), sizes=np.full((1, 2), side, 'i4'))\n"
        "for run in engine.run, engine.run_alone: run(inputs(32)); run(inputs(1024))\n"
        "ran = anonymous(); engine.give_back(); print(ran - anonymous())"
    )
    command = [sys.executable, "-c", code, str(tiny_bundle / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 16 * 1024, "both sessions kept what a megapixel takes"


def test_a_graph_that_cannot_be_written_is_opened_as_it_is(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(path: Path, place: str) -> None:
        raise RuntimeError("no such operator in this format")

    monkeypatch.setattr("server.engines.ready_graph._write", refuses)
    with caplog.at_level("INFO"):
        engine = load_engine(tiny_bundle / "model.onnx", 2)
    assert "no such operator in this format" in caplog.text
    assert engine.run({"images": np.zeros((1, 64, 64, 3), np.uint8), "sizes": np.array([[64, 64]], np.int32)})


def test_a_file_that_is_no_graph_is_refused_with_its_own_path(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(UnsupportedModelFile, match=r"model\.onnx"):
        load_engine(path, 2)
