"""ONNX Runtime on the CPU: the engine that runs everywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from server.engines import Tensors
from server.engines.ready_graph import ready_graph, ready_options
from server.errors import UnsupportedModelFile
from server.shared_file import shared_file

PROVIDER = "CPUExecutionProvider"
KEPT_PIXELS = 1_100_000  # input pixels of a run up to which its memory is kept for the next one


class OnnxRuntimeCpu:
    """Two sessions on one file: in a crowd every run has one core, a lone run has them all.

    One session with a thread for every core would do both, but runs that share its threads take 5 to 20 % more of the
    CPU each. The threads of a lone run spin until it ends, as waking them for every operator would cost a third of a
    small network's time; between runs they sleep, so that a server at rest costs nothing.

    The arena keeps a run's memory for the next one, which makes runs a third faster, but it would keep what the largest
    picture ever took; so a run above `KEPT_PIXELS` gives its memory back.

    Args:
        threads: cores that a lone run may use.
        graph_file: of `shared_file`, which other processes have too; None: one for this engine alone is made.
    """

    name = "onnxruntime-cpu"

    def __init__(self, path: Path, threads: int, graph_file: int | None = None) -> None:
        self.slots = threads
        file = shared_file("graph", 0) if graph_file is None else graph_file
        try:
            ready = ready_graph(path, file)
            self._one_core = _session(path, ready, 1)
            self._all_cores = _session(path, ready, threads) if threads > 1 else self._one_core
        finally:
            if graph_file is None:
                os.close(file)  # the sessions have mapped it
        self._inputs = {value.name for value in self._one_core.get_inputs()}  # `sizes` is optional
        self._outputs = [output.name for output in self._one_core.get_outputs()]
        self._shrinks = onnxruntime.RunOptions()
        self._shrinks.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._first: dict[str, NDArray[Any]] = {}  # inputs of the first run, which is that of the golden sample

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        return self._run(self._one_core, inputs)

    def run_alone(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        return self._run(self._all_cores, inputs)

    def give_back(self) -> None:
        """At the end of a run of each session: ONNX Runtime has no other way."""
        if self._first:
            for session in (self._one_core, self._all_cores):
                session.run(self._outputs, self._first, self._shrinks)

    def close(self) -> None:
        del self._one_core, self._all_cores

    def _run(self, session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        batch, height, width = inputs["images"].shape[:3]
        options = self._shrinks if batch * height * width > KEPT_PIXELS else None
        fed = {name: tensor for name, tensor in inputs.items() if name in self._inputs}
        self._first = self._first or fed
        return dict(zip(self._outputs, session.run(self._outputs, fed, options), strict=True))


def _session(path: Path, ready: str | None, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions() if ready is None else ready_options()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # with the end of the run
    try:
        session = onnxruntime.InferenceSession(
            ready or str(path), options, providers=[(PROVIDER, {"arena_extend_strategy": "kSameAsRequested"})]
        )
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise UnsupportedModelFile(f"ONNX Runtime cannot open {path}: {error}") from None
    if session.get_providers()[0] != PROVIDER:
        raise UnsupportedModelFile(f"{path}: wanted {PROVIDER}, got {session.get_providers()}")
    return session
