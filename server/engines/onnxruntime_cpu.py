"""ONNX Runtime on the CPU: the engine that runs everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from server.engines import Tensors
from server.errors import UnsupportedModelFile

PROVIDER = "CPUExecutionProvider"
KEPT_PIXELS = 1_100_000  # input pixels of a run up to which its memory is kept for the next one


class OnnxRuntimeCpu:
    """One session with its own threads; idle threads sleep instead of spinning, so that a server at rest costs nothing.

    The arena keeps a run's memory for the next one, which makes runs a third faster, but it would keep what the largest
    picture ever took; so a run above `KEPT_PIXELS` gives its memory back.
    """

    name = "onnxruntime-cpu"

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[(PROVIDER, {"arena_extend_strategy": "kSameAsRequested"})]
            )
        except Exception as error:  # onnxruntime has no common base class for its errors
            raise UnsupportedModelFile(f"ONNX Runtime cannot open {path}: {error}") from None
        if self._session.get_providers()[0] != PROVIDER:
            raise UnsupportedModelFile(f"{path}: wanted {PROVIDER}, got {self._session.get_providers()}")
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._give_back = onnxruntime.RunOptions()
        self._give_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        batch, height, width = inputs["images"].shape[:3]
        options = self._give_back if batch * height * width > KEPT_PIXELS else None
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs), options), strict=True))

    def close(self) -> None:
        del self._session
