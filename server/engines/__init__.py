"""Runtimes, one file each. An engine runs a batch; it knows nothing of pictures, queues or HTTP.

To add one: write the file, add one `case` to `load_engine`, which imports it on demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from server.errors import UnsupportedModelFile

Tensors = dict[str, NDArray[Any]]


class Engine(Protocol):
    """What the scheduler runs."""

    @property
    def name(self) -> str:
        """The runtime and its device, as in `seg_model_info`: `onnxruntime-cpu`."""

    @property
    def slots(self) -> int:
        """How many runs it takes at the same time, each in a thread of the caller's."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """`images` (B, h, w, 3) uint8 and `sizes` (B, 2) int32 to the outputs, each (B, ...). On one core or device."""

    def run_alone(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """The same while nothing else computes: it may use all cores."""

    def give_back(self) -> None:
        """Return the memory that runs so far have taken and that is kept for the next ones, which take it again."""

    def close(self) -> None:
        """Free the device; `run` is not called again."""


def load_engine(path: Path, threads: int, graph_file: int | None = None) -> Engine:
    """Open a model file with the runtime its suffix asks for.

    Args:
        threads: cores one run may use.
        graph_file: of `shared_file`, where several processes open this graph; see `ready_graph`.

    Raises:
        UnsupportedModelFile: no runtime for it here, or the runtime refuses the file.
    """
    match path.suffix:
        case ".onnx":
            from server.engines.onnxruntime_cpu import OnnxRuntimeCpu

            return OnnxRuntimeCpu(path, threads, graph_file)
        case suffix:
            raise UnsupportedModelFile(f"Could not open {path.name}: no runtime for '{suffix}' here.")
