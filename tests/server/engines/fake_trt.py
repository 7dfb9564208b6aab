"""A TensorRT of plain memory: the names that `server.engines.tensorrt` uses, over a network of numpy.

A plan is JSON: profiles, and whether there is an input `sizes`. Its network answers, for every picture, the sum of its
pixels and all pixels doubled, so that an answer that belongs to another picture or another run is seen.
`test_tensorrt.py` compares every name here with the real bindings.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np

from tests.server.engines.memory import MemoryDevice

VERSION = "11.4.0.106"


def plan(*profiles: dict[str, list[list[int]]], sizes: bool = False, **more: Any) -> bytes:
    """A serialised engine. Each profile: name -> [smallest, best, largest]."""
    return json.dumps({"profiles": profiles, "sizes": sizes} | more).encode()


class Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        self.severity = severity


class TensorIOMode:
    NONE, INPUT, OUTPUT = range(3)


def nptype(dtype: str) -> type:
    kinds: dict[str, type] = {"UINT8": np.uint8, "INT32": np.int32, "FLOAT": np.float32}
    return kinds[dtype]


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        self.shapes.clear()
        return 0 <= profile_index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = tuple(shape)
        return all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True))

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes] + self.engine.told.get("lacking", [])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, height, width, _ = self.shapes["images"]
        known = {"sums": (batch,), "doubled": (batch, height, width)}
        return tuple(self.engine.told.get("shapes", {}).get(name, known[name]))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        device = self.engine.device
        if self.engine.refusing:
            return False
        shapes = dict(self.shapes)
        addresses = dict(self.addresses)
        assert set(addresses) == set(self.engine.names)
        self.engine.ran.append((self.profile, shapes["images"], stream_handle))

        def compute() -> None:
            images = self._array(device, addresses["images"], shapes["images"], np.uint8)
            doubled = images.astype(np.float32).sum(axis=-1) * 2
            if "sizes" in shapes:
                doubled += self._array(device, addresses["sizes"], shapes["sizes"], np.int32).sum(axis=-1)[
                    :, None, None
                ]
            for name, value in (("sums", images.sum(axis=(1, 2, 3), dtype=np.int32)), ("doubled", doubled)):
                self._array(device, addresses[name], value.shape, value.dtype)[...] = value

        device.streams[stream_handle].append(compute)
        return True

    @staticmethod
    def _array(device: MemoryDevice, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert device.holds(address, size), "outside of the memory that was allocated"
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


class ICudaEngine:
    def __init__(self, told: dict[str, Any], device: MemoryDevice) -> None:
        self.told = told
        self.device = device
        self.inputs = told.get("inputs") or ["images", *(["sizes"] if told["sizes"] else [])]
        self.names = [*self.inputs, "sums", "doubled"]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(told["profiles"])
        self.refusing = False
        self.ran: list[tuple[int | None, tuple[int, ...], int]] = []  # profile, shape of images, stream

    def get_tensor_name(self, index: int) -> str:
        name: str = self.names[index]
        return name

    def get_tensor_mode(self, name: str) -> int:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return {"images": "UINT8", "sizes": "INT32", "sums": "INT32"}.get(name, "FLOAT")

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.told["profiles"][profile_index][name]]

    def create_execution_context(self) -> IExecutionContext | None:
        return None if self.told.get("no_context") else IExecutionContext(self)


class Bindings:
    """In place of the module `tensorrt`.

    Args:
        device: where its networks run.
    """

    Logger = Logger
    TensorIOMode = TensorIOMode
    nptype = staticmethod(nptype)

    def __init__(self, device: MemoryDevice, version: str = VERSION) -> None:
        self.__version__ = version
        self.engines: list[ICudaEngine] = []
        self.runtimes: list[Any] = []
        bindings = self

        class Runtime:
            def __init__(self, logger: Logger) -> None:
                self.engine_host_code_allowed = True
                bindings.runtimes.append(self)

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
                try:
                    told = json.loads(serialized_engine)
                except ValueError:
                    return None
                bindings.engines.append(ICudaEngine(told, device))
                return bindings.engines[-1]

        self.Runtime = Runtime
