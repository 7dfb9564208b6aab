"""A graph that ONNX Runtime has made ready for this CPU once, for all sessions of all processes.

To open a graph, ONNX Runtime folds its constants, fuses its operators and lays its weights out as the CPU wants them. A
session that does so has a copy of all weights to itself. Here the first one writes what came of it into a file in
memory, and every session, the first one's own process included, maps that file: the weights are there once, where the
CPU reads them best (`server.engines.aligned_weights`).

    file = shared_file("graph-nuclei-1", 0)     a descriptor, handed to other processes as it is
    ready_graph(path, file)                     "/proc/self/fd/7", written by whoever is first, complete once sealed

Only Linux seals files. Elsewhere, and where ONNX Runtime cannot write a graph in its own format, every session opens
the original.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime

from server.engines.aligned_weights import write_aligned
from server.shared_file import shared_file

if sys.platform == "linux":
    import fcntl

log = logging.getLogger("maskserve")


def ready_graph(path: Path, file: int) -> str | None:
    """The path of the ready graph, which is made if need be; blocks while another process makes it.

    Args:
        path: of the original.
        file: of `shared_file`, for this graph alone.

    Returns:
        A path of this process, good while `file` is open; None where there can be none.
    """
    place = f"/proc/self/fd/{file}"
    if sys.platform != "linux" or not os.path.exists(place):
        return None
    with _alone(place):
        if _is_complete(file):
            return place
        os.ftruncate(file, 0)  # of whoever ended while writing
        draft = shared_file("draft", 0)
        try:
            _write(path, f"/proc/self/fd/{draft}")
            write_aligned(draft, file)
            onnxruntime.InferenceSession(place, ready_options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class for its errors
            log.info("%s: every session has its own weights, as its graph cannot be made ready: %s", path, error)
            return None
        finally:
            os.close(draft)
        _complete(file)
    return place


def ready_options() -> onnxruntime.SessionOptions:
    """With which a session maps the file of `ready_graph`, and has nothing left to do."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.load_model_format", "ORT")
    options.add_session_config_entry("session.use_memory_mapped_ort_model", "1")
    options.add_session_config_entry("session.use_ort_model_bytes_directly", "1")
    options.add_session_config_entry("session.use_ort_model_bytes_for_initializers", "1")
    return options


def _write(path: Path, place: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # it warns that the file is good for this CPU only
    options.optimized_model_filepath = place
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _alone(place: str) -> Iterator[None]:
    """While no other process is here. The lock belongs to this opening of the file, and goes with the process."""
    with open(place, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_complete(file: int) -> bool:
    return bool(fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)


def _complete(file: int) -> None:
    """Nobody can change it any more, by accident or otherwise."""
    fcntl.fcntl(
        file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    )
