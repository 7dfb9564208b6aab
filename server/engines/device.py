"""A GPU as the runners see it: memory on it, pinned memory beside it, streams, and copies in the order of a stream.

    device = open_device()
    address = device.allocate(1024)
    host = device.pin(1024)                      # (1024,) uint8, page-locked: copies of it overlap with compute
    stream = device.open_stream()
    device.copy_in(address, host, stream)        # begun, in the order of the stream
    device.copy_out(host, address, stream)
    device.synchronise(stream)                   # done

The runners know this interface only, so a device of plain memory takes their every line in the tests. The real one is
the CUDA runtime through `ctypes`: a dozen functions whose signatures have been the same since CUDA 11. It needs the
library (`libcudart`, which the packages of requirements/gpu.txt bring) and no Python package.

One process uses one GPU, the first that it sees; `CUDA_VISIBLE_DEVICES` says which that is.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import DeviceFault, DeviceFull, NoEngine

SUCCESS, OUT_OF_MEMORY = 0, 2  # cudaError_t
TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
NON_BLOCKING = 1  # cudaStreamNonBlocking: does not wait for the default stream
MAJOR, MINOR = 75, 76  # cudaDeviceAttr
# cudaDeviceProp: its length differs between versions, and its first members have been the same since CUDA 10
NAME_BYTES, MEMORY_AT, PROPERTIES_BYTES = 256, 288, 1 << 14  # char name[256], and after 28 bytes size_t totalGlobalMem
SONAMES = ("libcudart.so.13", "libcudart.so.12")
SYSTEM = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib")
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Properties:
    """What an engine's passport is held against."""

    name: str  # as the driver says it: `NVIDIA H200`
    compute_capability: str  # `9.0`
    driver: str  # `580.65.06`, or the CUDA version that it speaks where it does not tell
    memory: int  # bytes in all


class Device(Protocol):
    """What the runners need of a GPU. Addresses are of device memory, streams are handles; both are plain numbers.

    Every method raises `DeviceFault` when the device or its driver fails.
    """

    @property
    def properties(self) -> Properties: ...

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device, aligned to 256.

        Raises:
            DeviceFull: there are not so many.
        """

    def free(self, address: int) -> None: ...

    def pin(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes of host memory, page-locked.

        Raises:
            DeviceFull: there are not so many.
        """

    def unpin(self, host: NDArray[np.uint8]) -> None:
        """Free what `pin` gave; nobody looks at it any more."""

    def open_stream(self) -> int: ...

    def close_stream(self, stream: int) -> None: ...

    def copy_in(self, address: int, host: NDArray[np.uint8], stream: int) -> None:
        """Begin to copy pinned bytes to the device, after what the stream has already."""

    def copy_out(self, host: NDArray[np.uint8], address: int, stream: int) -> None:
        """Begin to copy to pinned bytes, after what the stream has already."""

    def synchronise(self, stream: int) -> None:
        """Wait until the stream has done all it was given."""


class CudaDevice:
    """The first GPU that this process sees, by the CUDA runtime.

    Args:
        runtime: the library `libcudart`.

    Raises:
        NoEngine: it finds no device.
    """

    def __init__(self, runtime: ctypes.CDLL) -> None:
        self._cuda = runtime
        for function in ("cudaGetErrorName", "cudaGetErrorString"):
            getattr(runtime, function).restype = ctypes.c_char_p
        count = ctypes.c_int()
        code = runtime.cudaGetDeviceCount(ctypes.byref(count))
        if code != SUCCESS:
            raise NoEngine(f"no CUDA device: {self._name(code)}")
        if count.value < 1:
            raise NoEngine("no CUDA device: the driver counts none")
        self._pinned: dict[int, int] = {}  # of an array's first byte -> what cudaHostAlloc gave
        self.properties = self._read_properties()

    def allocate(self, size: int) -> int:
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        return int(address.value or 0)

    def free(self, address: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(address))

    def pin(self, size: int) -> NDArray[np.uint8]:
        address = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(max(1, size)), ctypes.c_uint(0))
        memory = (ctypes.c_uint8 * max(1, size)).from_address(int(address.value or 0))
        host: NDArray[np.uint8] = np.ctypeslib.as_array(memory)[:size]
        self._pinned[host.ctypes.data] = int(address.value or 0)
        return host

    def unpin(self, host: NDArray[np.uint8]) -> None:
        self._call("cudaFreeHost", ctypes.c_void_p(self._pinned.pop(host.ctypes.data)))

    def open_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(NON_BLOCKING))
        return int(stream.value or 0)

    def close_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def copy_in(self, address: int, host: NDArray[np.uint8], stream: int) -> None:
        self._copy(address, host.ctypes.data, host.nbytes, TO_DEVICE, stream)

    def copy_out(self, host: NDArray[np.uint8], address: int, stream: int) -> None:
        self._copy(host.ctypes.data, address, host.nbytes, TO_HOST, stream)

    def synchronise(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        where = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self._call("cudaMemcpyAsync", *where, ctypes.c_size_t(size), ctypes.c_int(kind), ctypes.c_void_p(stream))

    def _read_properties(self) -> Properties:
        """By calls that make no context on the device, which would take memory of it: the supervisor asks too."""
        parts = []
        for attribute in (MAJOR, MINOR):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(0))
            parts.append(str(value.value))
        described = ctypes.create_string_buffer(PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", described, ctypes.c_int(0))
        name = described.raw[:NAME_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")
        memory = ctypes.c_size_t.from_buffer(described, MEMORY_AT)
        version = ctypes.c_int()
        self._call("cudaDriverGetVersion", ctypes.byref(version))
        speaks = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        return Properties(name, ".".join(parts), _driver() or speaks, memory.value)

    def _call(self, function: str, *args: Any) -> None:
        code = getattr(self._cuda, function)(*args)
        if code == OUT_OF_MEMORY:
            self._cuda.cudaGetLastError()  # forget it, or ONNX Runtime's next call in this thread is told of it
            raise DeviceFull(f"{function}: the device has no memory left for this")
        if code != SUCCESS:
            raise DeviceFault(f"{function}: {self._name(code)}")

    def _name(self, code: int) -> str:
        """`cudaErrorIllegalAddress (700)`."""
        name = self._cuda.cudaGetErrorName(code)
        return f"{name.decode() if name else 'an unknown error'} ({code})"


def open_device() -> CudaDevice:
    """The GPU of this process.

    Raises:
        NoEngine: no CUDA runtime here, or it finds no device; says which.
    """
    refusals = []
    for path in _libraries():
        try:
            return CudaDevice(ctypes.CDLL(path))
        except OSError:
            continue  # not here
        except NoEngine as error:  # a runtime too new for the driver; an older one may do
            refusals.append(error)
    if refusals:
        raise refusals[0]
    raise NoEngine("no CUDA device: no CUDA runtime (libcudart) is installed; requirements/gpu.txt brings one")


def _libraries() -> Iterator[str]:
    """Where `libcudart` may lie: in the packages nvidia-cuda-runtime*, where the loader looks, beside the compiler."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    for soname in SONAMES:
        for folder in folders:
            yield from map(str, sorted(folder.glob(f"*/lib/{soname}")))
        yield soname
        yield from (f"{folder}/{soname}" for folder in SYSTEM)


def _driver(path: Path = DRIVER) -> str:
    """The driver's version, from its kernel module's own line; empty where it has none."""
    try:
        line = path.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return ""
    return next((word for word in line.split() if word[0].isdigit() and "." in word), "")
