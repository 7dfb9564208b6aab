"""numpy arrays in pickles."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from models.weights import CheckpointError, read_checkpoint
from tests.models.checkpoints.honest import arrays, few, flat
from tests.models.checkpoints.hostile import name, reduce, text


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_are_what_they_were(tmp_path: Path, protocol: int) -> None:
    wanted = {
        **arrays(few()),
        "long": np.arange(5_000, dtype=np.float32),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(5, dtype=">f4"),
        "scalar": np.float32(2.5),
        "none": np.zeros((0, 3), np.float32),
        "bytes": np.arange(256, dtype=np.uint8).repeat(40),
    }
    found = read_checkpoint(flat({"model": wanted, "__author__": "me"}, tmp_path / "m.pkl", protocol))
    assert found.container == "pickle"
    assert found.metadata == {"__author__": "me"}
    for key, array in wanted.items():
        assert found.tensors[key].shape == array.shape
        assert np.array_equal(found.tensors[key].numpy(), array)


def test_python_2_wrote_its_own_strings(tmp_path: Path) -> None:
    """`SHORT_BINSTRING`: bytes and text alike."""
    numbers = np.array([1.0, -2.0], "<f4").tobytes()
    dtype = reduce(name("numpy.dtype"), b"U\x02f4", b"K\x00", b"K\x01")
    dtype += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = reduce(name("numpy.core.multiarray._reconstruct"), name("numpy.ndarray"), b"K\x00\x85", b"U\x01b")
    array = empty + b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + numbers + b"tb"
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02}U\x05blobs}U\x03res" + array + b"ss.")
    assert read_checkpoint(path).tensors["res"].tolist() == [1.0, -2.0]


class Surprise:
    """In an array of objects."""


@pytest.mark.parametrize(
    "array",
    [
        np.array([Surprise(), None], dtype=object),
        np.array(["text"]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.array([b"bytes"]),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path: Path, array: object) -> None:
    with pytest.raises(CheckpointError, match=r"weight 'w': .*where numbers are expected.*plain float arrays"):
        read_checkpoint(flat({"model": {"v": np.zeros(1), "w": array}}, tmp_path / "m.pkl"))


def test_beside_the_weights_they_do_not_matter(tmp_path: Path) -> None:
    tree = {"model": {"v": np.zeros(1)}, "log": np.array([Surprise()], dtype=object)}
    assert list(read_checkpoint(flat(tree, tmp_path / "m.pkl")).tensors) == ["v"]


@pytest.mark.parametrize("size", [10, 5_000])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("claim", [b"K\x0b", b"M\x10\x27", b"J\xff\xff\xff\x7f", b"K\x09"])
def test_a_shape_that_does_not_fit_its_bytes_is_refused(tmp_path: Path, size: int, protocol: int, claim: bytes) -> None:
    whole = {10: b"K\x0a", 5_000: b"M\x88\x13"}[size]
    data = pickle.dumps({"w": np.ones(size, np.uint8)}, protocol)
    assert data.count(whole + b"\x85") == 1
    path = tmp_path / "m.pkl"
    path.write_bytes(data.replace(whole + b"\x85", claim + b"\x85"))
    with pytest.raises(CheckpointError, match=r"does not fit its \d+ bytes|reaches"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "shape", [b"K\x01", b"J\xff\xff\xff\xff\x85", b"N\x85", b"(" + b"K\x01" * 20 + b"t", b"\x88\x85"]
)
def test_a_shape_that_is_none_is_refused(tmp_path: Path, shape: bytes) -> None:
    data = pickle.dumps({"w": np.ones(10, np.uint8)}, 2)
    path = tmp_path / "m.pkl"
    path.write_bytes(data.replace(b"K\x0a\x85", shape))
    with pytest.raises(CheckpointError, match=r"numpy array has shape"):
        read_checkpoint(path)


def test_an_array_that_was_never_filled_is_refused(tmp_path: Path) -> None:
    empty = reduce(name("numpy.core.multiarray._reconstruct"), name("numpy.ndarray"), b"K\x00\x85", text("b"))
    path = tmp_path / "m.pkl"
    path.write_bytes(b"\x80\x02}" + text("w") + empty + b"s.")
    with pytest.raises(CheckpointError, match="never filled"):
        read_checkpoint(path)


def test_what_is_read_is_nobody_elses_memory(tmp_path: Path) -> None:
    path = flat({"w": np.ones(5_000, np.float32)}, tmp_path / "m.pkl")
    found = read_checkpoint(path).tensors["w"]
    path.write_bytes(b"")
    assert found.add_(1).sum() == 10_000
    assert found.dtype == torch.float32
