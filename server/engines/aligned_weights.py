"""A graph in ONNX Runtime's format whose large weights begin at multiples of 64 bytes.

ONNX Runtime writes weights at multiples of 4 bytes, and where a session maps the file and reads them where they lie,
most vector loads then cross the border of a cache line: 2 % of a run. Here they are moved behind all else:

    [tables  w1  tables  w2  tables]   ->   [tables      tables      tables | w1 | w2]

Where they were, nothing is written, which in a sparse file takes no room. The format is a flatbuffer
(https://flatbuffers.dev/internals/), the numbers of its fields are those of `ort.fbs` in ONNX Runtime's source.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

LINE = 64  # bytes of a cache line
LARGE = 4096  # bytes of a weight that is moved
LONGEST = 2**31 - 1  # bytes of a flatbuffer

SESSION_MODEL, MODEL_GRAPH, GRAPH_INITIALIZERS, TENSOR_RAW_DATA = 1, 7, 0, 4


class Weight(NamedTuple):
    """Positions in the file."""

    reference: int  # of the distance from there to the length
    length: int  # of the length, which the bytes follow
    size: int  # of the bytes


def large_weights(graph: mmap.mmap | bytes) -> list[Weight]:
    """The graph's own, in the order in which they lie; those of its subgraphs are left out.

    Raises:
        struct.error: it is no such graph.
    """
    tensors = _follow(graph, 0)
    for number in (SESSION_MODEL, MODEL_GRAPH, GRAPH_INITIALIZERS):
        field = _field(graph, tensors, number)
        if field is None:
            return []
        tensors = _follow(graph, field)
    weights = []
    for tensor in _tables(graph, tensors):
        reference = _field(graph, tensor, TENSOR_RAW_DATA)
        if reference is not None:
            length = _follow(graph, reference)
            weights.append(Weight(reference, length, _number(graph, length)))
    return sorted((weight for weight in weights if weight.size >= LARGE), key=lambda weight: weight.length)


def write_aligned(draft: int, file: int) -> None:
    """Copy a graph.

    Args:
        draft: descriptor of the graph as ONNX Runtime wrote it.
        file: descriptor of the empty file that gets it.
    """
    with mmap.mmap(draft, 0, access=mmap.ACCESS_READ) as graph, memoryview(graph) as view:
        weights = large_weights(graph)
        if len(graph) + sum(weight.size + 2 * LINE for weight in weights) > LONGEST:
            weights = []
        moved: list[tuple[int, int]] = []
        written, end = 0, len(graph)
        for weight in weights:
            begin = -(-(end + 4) // LINE) * LINE
            after = weight.length + 4 + weight.size
            _put(file, view[written : weight.length], written)
            _put(file, view[weight.length : after], begin - 4)
            written, end = after, begin + weight.size
            moved.append((weight.reference, begin - 4 - weight.reference))
        _put(file, view[written:], written)
        for reference, distance in moved:  # the references lie anywhere, and are overwritten last
            _put(file, memoryview(struct.pack("<I", distance)), reference)


def _put(file: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(file, data, at)
        data, at = data[count:], at + count


def _number(graph: mmap.mmap | bytes, at: int) -> int:
    return int(struct.unpack_from("<I", graph, at)[0])


def _follow(graph: mmap.mmap | bytes, at: int) -> int:
    """What a reference refers to."""
    return at + _number(graph, at)


def _field(graph: mmap.mmap | bytes, table: int, number: int) -> int | None:
    """The position of a table's field; None where it has none."""
    fields = table - struct.unpack_from("<i", graph, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", graph, fields)[0]:
        return None
    offset = struct.unpack_from("<H", graph, fields + 4 + 2 * number)[0]
    return table + offset if offset else None


def _tables(graph: mmap.mmap | bytes, vector: int) -> Iterator[int]:
    """The tables that a vector refers to."""
    for number in range(_number(graph, vector)):
        yield _follow(graph, vector + 4 + 4 * number)
