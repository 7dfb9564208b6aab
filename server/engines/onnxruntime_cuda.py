"""ONNX Runtime on a GPU, with our own memory on both sides of the run.

    pinned host memory -> device -> the graph -> device -> pinned host memory -> the answer's own memory

Left to itself, ONNX Runtime takes pageable arrays, and takes and frees memory for every output of every run. Here both
ends are bound to memory that is there (I/O binding), so the copies overlap with another run's compute.

What a shape makes of the outputs is learned at its first run, whose outputs ONNX Runtime places itself; later runs of
that shape find them placed. One run computes at a time: two would share the GPU's cores and take twice the memory.

TF32 is off, as the golden sample's tolerance is for fp32 in full: it would keep 10 bits of each factor's 23.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from server.engines import Tensors
from server.engines.device import Device
from server.engines.lanes import Block, Lane, Lanes, Spec, lay_out
from server.engines.provider import CUDA, Provider
from server.errors import DeviceFault, DeviceFull, NoEngine, ShapeRefused, UnsupportedModelFile

SLOTS = 2  # one copies while the other computes
KEPT_SHAPES = 64  # whose outputs are known; a model that takes any size has more
DTYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}
NO_GRAPH = "-1"  # run option gpu_graph_id: this run is neither recorded nor replayed
FULL = re.compile(r"out of memory|failed to allocate memory|failure 2\b|ALLOC(?:ATION)?_FAILED", re.IGNORECASE)
# its kernels or its CUDA are not for this GPU and driver, or the GPU is somebody else's alone: cudaError_t
UNFIT = re.compile(r"\bCUDA failure (?:35|46|100|101|209|803|804)\b")
REFUSED = re.compile(r"_STATUS_(?:NOT_SUPPORTED|BAD_PARAM|INVALID_VALUE|ARCH_MISMATCH)")  # of cuDNN and cuBLAS
FAULT = re.compile(r"\b(?:CUDA|CUDNN|CUBLAS|CUFFT|CURAND)(?:_[A-Z]+)? (?:failure|error)\b:? ?(?:\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest run that the scheduler will ask for."""

    images: int
    pixels: int  # of all its images together


class _Lane(Lane):
    """A lane, and its shapes that are recorded as CUDA graphs: a graph has addresses written into it."""

    def __init__(self, device: Device, inputs: int) -> None:
        super().__init__(device, inputs, 0)
        self.graphs: dict[tuple[int, ...], tuple[str, Block]] = {}  # shape -> its number, where its outputs lie


class OnnxRuntimeCuda:
    """An `Engine`.

    Args:
        path: the ONNX file.
        largest: bounds the memory that is taken now; a larger run is refused.
        provider: who runs the graph.
        graphs: shapes that each lane records as CUDA graphs, the first that come; 0 for none.

    Raises:
        NoEngine: this ONNX Runtime has not got the provider, or gives another one.
        UnsupportedModelFile: ONNX Runtime refuses the file.
        DeviceFull, DeviceFault: no memory for it, or the device failed.
    """

    name = "onnxruntime-cuda"

    def __init__(
        self,
        path: Path,
        device: Device,
        largest: Largest,
        *,
        provider: Provider = CUDA,
        graphs: int = 0,
        slots: int = SLOTS,
    ) -> None:
        self.slots = slots
        self._provider = provider
        self._largest = largest
        self._graphs = graphs
        self._session = _open_session(path, provider, graphs)
        self._names = [value.name for value in self._session.get_inputs()]  # `sizes` is optional
        self._outputs: dict[str, np.dtype[Any]] = {}
        for value in self._session.get_outputs():
            if value.type not in DTYPES:
                raise UnsupportedModelFile(f"{path}: output '{value.name}' is {value.type}; known are {sorted(DTYPES)}")
            self._outputs[value.name] = np.dtype(DTYPES[value.type])
        self._shapes: OrderedDict[tuple[int, ...], dict[str, Spec]] = OrderedDict()  # of the outputs, by that of images
        self._numbers = itertools.count(1)
        self._computing = threading.Lock()  # also over `_shapes` and `_numbers`
        byte = np.dtype(np.uint8)
        inputs = lay_out({"images": (byte, (largest.pixels * 3,)), "sizes": (byte, (largest.images * 8,))})[1]
        self._lanes = Lanes(slots, lambda: _Lane(device, inputs))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """
        Raises:
            ShapeRefused: the batch is larger than the engine was opened for.
            DeviceFull: no memory for what lies between; a smaller batch may fit.
            DeviceFault: the device failed.
            NoEngine: at the first run: ONNX Runtime is not for this GPU or its driver.
        """
        batch, height, width = inputs["images"].shape[:3]
        if batch > self._largest.images or batch * height * width > self._largest.pixels:
            raise ShapeRefused(
                f"{batch} images of {height} x {width} are more than the {self._largest.images} images and "
                f"{self._largest.pixels} pixels that the engine was opened for"
            )
        fed = {name: np.asarray(inputs[name]) for name in self._names}
        with self._lanes.take() as lane:
            addresses = lane.send(fed)
            lane.synchronise()  # ONNX Runtime computes on a stream of its own, which does not wait for ours
            binding = self._session.io_binding()
            for name, tensor in fed.items():
                binding.bind_input(name, self._provider.memory, 0, tensor.dtype.type, tensor.shape, addresses[name])
            with self._computing:
                specs = self._shapes.get(fed["images"].shape)
                if specs is None:
                    return self._run_to_learn(lane, binding, fed["images"].shape)
                number, block = self._place(lane, fed["images"].shape, specs)
                offsets = block.places(specs)
                where = {name: block.address + offset for name, offset in offsets.items()}
                for name, (dtype, shape) in specs.items():
                    binding.bind_output(name, self._provider.memory, 0, dtype.type, shape, where[name])
                self._compute(binding, number)
            return lane.fetch(specs, where, block)

    def run_alone(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        return self.run(inputs)

    def give_back(self) -> None:
        """Nothing: what it has is laid out for the largest run, and stays."""

    def close(self) -> None:
        self._lanes.close()
        del self._session

    def _run_to_learn(self, lane: _Lane, binding: Any, shape: tuple[int, ...]) -> Tensors:
        """The first run of a shape: ONNX Runtime places the outputs, and we see how large they are."""
        for name in self._outputs:
            binding.bind_output(name, self._provider.memory, 0)
        self._compute(binding, NO_GRAPH)
        values = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        specs = {name: (dtype, tuple(values[name].shape())) for name, dtype in self._outputs.items()}
        lane.room_for_outputs(lay_out(specs)[1])
        outputs = lane.fetch(specs, {name: values[name].data_ptr() for name in specs})
        self._shapes[shape] = specs
        if len(self._shapes) > KEPT_SHAPES:
            self._shapes.popitem(last=False)
        return outputs

    def _place(self, lane: _Lane, shape: tuple[int, ...], specs: Mapping[str, Spec]) -> tuple[str, Block]:
        """Where the outputs of a known shape go: to the lane's block, or to that of their CUDA graph."""
        size = lay_out(specs)[1]
        if shape not in lane.graphs and len(lane.graphs) < self._graphs:
            lane.graphs[shape] = str(next(self._numbers)), lane.own_outputs(size)
        if shape in lane.graphs:
            return lane.graphs[shape]
        lane.room_for_outputs(size)
        return NO_GRAPH, lane.outputs

    def _compute(self, binding: Any, graph: str) -> None:
        options = onnxruntime.RunOptions()
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", graph)
        try:
            self._session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()
        except Exception as error:  # onnxruntime has no common base class for its errors
            meaning = told(error)
            if meaning is error:
                raise
            if isinstance(meaning, NoEngine) and self._shapes:  # it did run here
                raise DeviceFault(str(meaning)) from error
            raise meaning from error


def told(error: Exception) -> Exception:
    """What an exception of ONNX Runtime means: the device failed, it is full or not for us, or the graph refused this
    input.

    Its classes do not tell; its text does, as `CUDA failure 700: an illegal memory access was encountered ; GPU=0 ...`.
    """
    text = str(error)
    if FULL.search(text):
        return DeviceFull("ONNX Runtime: the device has no memory left for this")
    unfit = UNFIT.search(text)
    if unfit:
        return NoEngine(f"ONNX Runtime does not run on this GPU with this driver: {unfit.group()}")
    found = FAULT.search(text)
    if found and not REFUSED.search(text):
        return DeviceFault(f"ONNX Runtime: {found.group().strip()}")
    return error


def check_provider(provider: Provider = CUDA) -> None:
    """
    Raises:
        NoEngine: this ONNX Runtime was built without it.
    """
    if provider.name not in onnxruntime.get_available_providers():
        raise NoEngine(
            f"the onnxruntime that is installed has no {provider.name}: install requirements/gpu.txt "
            "(onnxruntime-gpu in place of onnxruntime; they are the same module)"
        )


def _open_session(path: Path, provider: Provider, graphs: int) -> onnxruntime.InferenceSession:
    check_provider(provider)
    if provider.memory == "cuda":
        onnxruntime.preload_dlls()  # of the packages nvidia-*, which the loader does not find by itself
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # of the CPU: it has shapes to reckon, no more
    options.log_severity_level = 3
    given = provider.options | ({"enable_cuda_graph": "1"} if graphs else {})
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[(provider.name, given)], enable_fallback=0
        )
    except Exception as error:
        meaning = told(error)
        if meaning is not error:
            raise meaning from error
        hint = "; try without --cuda-graphs" if graphs else ""
        raise UnsupportedModelFile(f"ONNX Runtime cannot open {path}: {error}{hint}") from None
    if session.get_providers()[0] != provider.name:
        raise NoEngine(
            f"wanted {provider.name}, ONNX Runtime gave {session.get_providers()[0]}: it cannot load CUDA's or "
            "cuDNN's libraries; install requirements/gpu.txt as it stands"
        )
    return session
