"""Messages arrive as they were sent, however the stream is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import errors
from server.processes.arena import ALIGNMENT
from server.processes.wire import (
    ERRORS,
    Answered,
    Cancel,
    Failed,
    Free,
    Job,
    Message,
    Tensor,
    Unpacker,
    lay_out,
    pack,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**63)
pairs = st.tuples(u32, u32)
times = st.floats(0, 1e9)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
tensors = st.builds(
    Tensor, texts, st.sampled_from(["<f4", "<i4", "|u1"]), st.lists(u32, max_size=4).map(tuple), st.integers(0, 2**40)
)
messages = st.one_of(
    st.builds(Job, u64, st.integers(0, 65535), u64, pairs, pairs, st.none() | times, st.integers(-9, 9)),
    st.builds(Cancel, u64),
    st.builds(Free, u64),
    st.builds(Answered, u64, times, times, u32, u64, st.lists(tensors, max_size=4).map(tuple)),
    st.builds(Failed, u64, st.sampled_from(sorted(ERRORS)), texts, st.none() | times),
)


@given(sent=st.lists(messages, max_size=8), cut=st.integers(1, 200))
def test_what_is_packed_comes_out_whatever_the_pieces(sent: list[Message], cut: int) -> None:
    stream = b"".join(map(pack, sent))
    unpacker = Unpacker()
    got = [message for at in range(0, len(stream), cut) for message in unpacker.feed(stream[at : at + cut])]
    assert got == sent


@given(st.binary(min_size=5, max_size=200))
def test_noise_is_refused_or_waited_for_and_nothing_else(noise: bytes) -> None:
    try:
        for message in Unpacker().feed(noise):
            assert isinstance(message, Job | Cancel | Free | Answered | Failed)
    except ValueError:
        pass


def test_every_error_of_the_service_crosses_with_its_words_and_its_time() -> None:
    leaves = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.ServiceError]
    known = [kind for kind in leaves if issubclass(kind, errors.ServiceError)]
    assert len(known) >= 7
    for kind in known:
        sent = kind("come back", retry_after_s=1.5)
        (failed,) = Unpacker().feed(pack(Failed(1, sent.code, str(sent), sent.retry_after_s)))
        assert isinstance(failed, Failed)
        error = failed.error()
        assert type(error) is kind
        assert (str(error), error.retry_after_s) == ("come back", 1.5)


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4))
def test_outputs_lie_one_after_the_other_and_aligned(shapes: list[list[int]]) -> None:
    outputs = {str(number): np.zeros(shape, np.float32) for number, shape in enumerate(shapes)}
    laid, size = lay_out(outputs, ALIGNMENT)
    end = 0
    for tensor, array in zip(laid, outputs.values(), strict=True):
        assert end <= tensor.offset < end + ALIGNMENT
        assert tensor.offset % ALIGNMENT == 0
        end = tensor.offset + array.nbytes
        assert (tensor.shape, tensor.dtype) == (array.shape, "<f4")
    assert size == end


def test_a_message_that_is_none_of_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="kind 9"):
        list(Unpacker().feed(b"\x01\x00\x00\x00\x09"))
    with pytest.raises(ValueError, match="bytes"):
        list(Unpacker().feed(b"\xff\xff\xff\xff\x01"))
