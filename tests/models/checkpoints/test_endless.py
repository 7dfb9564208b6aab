"""Pickles that mean to take all time or all memory, and such as make no sense at all."""

from __future__ import annotations

import contextlib
import pickle
import struct
import tracemalloc
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoints.contents import remarks, weights_of
from models.checkpoints.errors import CheckpointError
from models.checkpoints.machine import Machine
from models.checkpoints.opcodes import ACTIONS, OPCODES, load
from models.checkpoints.values import Blob
from tests.models.checkpoints.honest import arrays, few, part
from tests.models.checkpoints.hostile import name, reduce, text

HONEST = pickle.dumps({"model": arrays(few()), "meta": {"CLASSES": ("a", "b")}, "epoch": 3}, 2)


def refusal(data: bytes) -> str:
    with pytest.raises(CheckpointError) as refused:
        load(Machine(part(data)))
    return str(refused.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"N0" * OPCODES + b"N.", "goes on after"),
        (b"(" * 100_000 + b".", "nested more than"),
        (b"\x8b" + struct.pack("<i", 1 << 30), "a number of"),
        (b"\x8b" + struct.pack("<i", -5), "a number of"),
        (b"I" + b"9" * 100_000 + b"\n.", "a line of more than"),
        (b"\x8e" + struct.pack("<Q", 1 << 62) + b"x.", "breaks off"),
        (b"\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"x.", "breaks off"),
        (b"X" + struct.pack("<I", 1 << 31) + b"x.", "breaks off"),
        (b"}" + text("k" * 4097) + b"Ns.", "for a key"),
        (b"}" + text("k" * 4000) + b"Ns" + b"](\x8a\x10" + b"\x7f" * 16 + b"Nds.", ""),
        (b"}]Ns.", "for a key"),
        (b"}\x8a\x10" + b"\x7f" * 16 + b"Ns.", "for a key"),
        (b"}(" + b"K\x01\x85" * 20 + b"tNs.", "for a key"),
        (b"(NNN" + b"d.", "sets entries"),
        (b"", "breaks off"),
        (b"\x80\x02", "breaks off"),
        (b"\x80\x09N.", "protocol 9"),
        (b".", "makes no sense"),
        (b"NN.", "makes no sense"),
        (b"0.", "makes no sense"),
        (b"R.", "makes no sense"),
        (b"NNR.", "calls"),
        (b"N)R.", "calls"),
        (name("collections.OrderedDict") + b"]R.", "calls"),
        (name("collections.OrderedDict") + b"}b.", "has none"),
        (b"]}b.", "has none"),
        (b"K\x01}b.", "has none"),
        (b"NNa.", "appends to"),
        (b"h\x05.", "makes no sense"),
        (b"gx\n.", "makes no sense"),
        (b"\xff.", "makes no sense"),
        (b"\x97.", "buffers"),
        (b"\x82\x01.", "extension registry"),
        (b"S'abc\n.", "makes no sense"),
        (b"NN\x93.", "no text"),
        (b"X\x02\x00\x00\x00\xff\xfe.", "makes no sense"),
        (b"t.", "makes no sense"),
    ],
)
def test_it_is_refused_in_one_sentence(data: bytes, says: str) -> None:
    said = refusal(data)
    assert says in said
    assert len(said) < 400
    assert "\n" not in said


@pytest.mark.parametrize(
    "data",
    [
        b"}" + text("a") + b"]q\x00" + b"".join(b"0]h%ca" % i + b"h%caq%c" % (i, i + 1) for i in range(60)) + b"s.",
        b"}" + text("a") + b")" + b"2\x86" * 100 + b"s.",
        b"}" + text("a") + b")" + b"\x85" * 300_000 + b"s.",
        b"}" + text("a") + b"]" + b"]2a0" + b"r\xff\xff\xff\xff" + b"s.",
        b"}" + text("a") + reduce(name("builtins.set"), b"](" + b"K\x01" * 1000 + b"e") + b"s.",
        b"}" + text("a") + b"\x8f(" + b")2\x86" * 5 + b"\x90s.",
    ],
)  # fmt: skip
def test_what_is_nested_or_shared_without_measure_is_read_and_left_alone(data: bytes) -> None:
    tree = load(Machine(part(data)))
    assert remarks(tree) == {}
    with pytest.raises(CheckpointError, match="dictionary of tensors"):
        weights_of(tree)


def test_no_value_is_copied_as_often_as_a_file_likes() -> None:
    """A memo makes one long list, or text, out of a few bytes; what is made from it must not cost its length."""
    long = b"](" + b"N" * 20_000 + b"eq\x000"
    pairs = b"](" + b"]K\x01aK\x02a" * 4_000 + b"eq\x000"
    word = text("x" * 4_000) + b"q\x000"
    attacks = (
        long + b"(" + (name("builtins.set") + b"h\x00\x85R") * 1_000 + b"1N.",
        long + (name("builtins.frozenset") + b"h\x00\x85R0") * 1_500 + b"N.",
        pairs + (name("collections.OrderedDict") + b"h\x00\x85R0") * 2_000 + b"N.",
        word + b"(" + (name("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R") * 4_000 + b"1N.",
        word + b"(" + (name("builtins.bytearray") + b"h\x00" + text("latin-1") + b"\x86R") * 4_000 + b"1N.",
    )
    for data in attacks:
        tracemalloc.start()
        with contextlib.suppress(CheckpointError):
            load(Machine(part(data)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 15e6


def test_a_tree_that_holds_itself_is_no_trouble() -> None:
    tree = load(Machine(part(b"}q\x00" + text("model") + b"h\x00s" + text("state_dict") + b"h\x00s.")))
    with pytest.raises(CheckpointError, match="dictionary of tensors"):
        weights_of(tree)


def test_a_module_that_holds_itself_is_refused() -> None:
    module = (
        name("nobody.Net") + b")\x81q\x00}" + text("_modules") + b"}" + text("a") + b"h\x00s" + text("b") + b"h\x00ssb."
    )
    with pytest.raises(CheckpointError, match="beyond reason"):
        weights_of(load(Machine(part(module))))


def test_a_long_string_stays_in_the_file() -> None:
    found = load(Machine(part(pickle.dumps(b"x" * 100_000, 4))))
    assert isinstance(found, Blob)
    assert found.read() == b"x" * 100_000


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        load(Machine(part(data)))


@given(st.lists(st.tuples(st.sampled_from(sorted(ACTIONS)), st.binary(max_size=6)), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_opcodes_are_read_or_refused(program: list[tuple[bytes, bytes]]) -> None:
    data = b"".join(code + argument for code, argument in program)
    with contextlib.suppress(CheckpointError):
        load(Machine(part(data + b".")))


@given(st.integers(0, len(HONEST) - 1), st.integers(0, 255))
@settings(max_examples=400, deadline=None)
def test_a_changed_byte_is_read_or_refused(at: int, byte: int) -> None:
    with contextlib.suppress(CheckpointError):
        views, _ = weights_of(load(Machine(part(HONEST[:at] + bytes([byte]) + HONEST[at + 1 :]))))
        for view in views.values():
            view.of(view.storage.load())


@given(st.integers(0, len(HONEST) - 1))
@settings(max_examples=100, deadline=None)
def test_a_pickle_that_breaks_off_is_refused(length: int) -> None:
    with pytest.raises(CheckpointError):
        load(Machine(part(HONEST[:length])))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 255, 256, 65536, 2**31, -(2**63), 2**100, 0.5, -1e300, "", "ä€", "x" * 300, (), (1,),
        (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1, [2, [3]]], {}, {"a": {"b": 1}}, {1: 2, None: 3, (1, "a"): 4},
        OrderedDict(a=1, b=2), "a\nb'\"\\",
    ],
)  # fmt: skip
def test_plain_values_are_what_they_were(value: object, protocol: int) -> None:
    assert load(Machine(part(pickle.dumps(value, protocol)))) == value


@pytest.mark.parametrize("protocol", range(6))
def test_sets_become_lists_and_bytes_stay_themselves(protocol: int) -> None:
    assert sorted(load(Machine(part(pickle.dumps({3, 1, 2}, protocol))))) == [1, 2, 3]
    assert load(Machine(part(pickle.dumps(frozenset((7,)), protocol)))) == [7]
    found = load(Machine(part(pickle.dumps(b"\x00\xff", protocol))))
    assert (found if isinstance(found, bytes) else found.encode("latin-1")) == b"\x00\xff"
