"""The CUDA runtime by ctypes: every call's code is looked at, and the real library is asked as far as it answers."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.engines import device as module
from server.engines.device import CudaDevice, open_device
from server.errors import DeviceFault, DeviceFull, NoEngine
from tests.server.engines.memory import MemoryDevice

NAMES = {2: b"cudaErrorMemoryAllocation", 35: b"cudaErrorInsufficientDriver", 700: b"cudaErrorIllegalAddress"}


class Function:
    """A function of a C library: it takes ctypes values, and its restype can be set."""

    def __init__(self, call: Any) -> None:
        self.call, self.restype = call, None

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


class FakeRuntime:
    """`libcudart` of plain memory; `codes` are what functions return in place of success."""

    def __init__(self, devices: int = 1) -> None:
        self.codes: dict[str, int] = {}
        self.kept: dict[int, Any] = {}
        self.copies: list[tuple[int, int]] = []  # bytes, kind
        self.called: list[str] = []
        self.devices = devices
        self.forgotten = 0  # times that the last error was

    def __getattr__(self, name: str) -> Function:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*args: Any) -> Any:
            self.called.append(name)
            if name == "cudaGetErrorName":
                return NAMES.get(args[0])
            if name in self.codes:
                return self.codes[name]
            getattr(self, "_" + name)(*args)
            return 0

        function = self.__dict__[name] = Function(call)
        return function

    def _cudaGetDeviceCount(self, count: Any) -> None:  # noqa: N802
        count._obj.value = self.devices

    def _cudaDeviceGetAttribute(self, value: Any, attribute: ctypes.c_int, device: ctypes.c_int) -> None:  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute.value]

    def _cudaGetDeviceProperties(self, properties: Any, device: ctypes.c_int) -> None:  # noqa: N802
        name, between = b"NVIDIA H200\0rest".ljust(256, b"\1"), bytes(28 + 4)
        properties.raw = (name + between + (20).to_bytes(8, "little")).ljust(1024, b"\1")

    def _cudaGetLastError(self) -> None:  # noqa: N802
        self.forgotten += 1

    def _cudaDriverGetVersion(self, version: Any) -> None:  # noqa: N802
        version._obj.value = 13020

    def _cudaMalloc(self, address: Any, size: ctypes.c_size_t) -> None:  # noqa: N802
        memory = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(memory)
        self.kept[ctypes.addressof(memory)] = memory

    def _cudaHostAlloc(self, address: Any, size: ctypes.c_size_t, flags: ctypes.c_uint) -> None:  # noqa: N802
        self._cudaMalloc(address, size)

    def _cudaFree(self, address: ctypes.c_void_p) -> None:  # noqa: N802
        del self.kept[address.value or 0]

    _cudaFreeHost = _cudaFree  # noqa: N815

    def _cudaStreamCreateWithFlags(self, stream: Any, flags: ctypes.c_uint) -> None:  # noqa: N802
        stream._obj.value = 2**40 + flags.value

    def _cudaStreamDestroy(self, stream: ctypes.c_void_p) -> None:  # noqa: N802
        assert stream.value == 2**40 + 1

    _cudaStreamSynchronize = _cudaStreamDestroy  # noqa: N815

    def _cudaMemcpyAsync(self, to: Any, source: Any, size: Any, kind: Any, stream: Any) -> None:  # noqa: N802
        assert stream.value == 2**40 + 1
        ctypes.memmove(to.value, source.value, size.value)
        self.copies.append((size.value, kind.value))


def cuda(runtime: FakeRuntime) -> CudaDevice:
    return CudaDevice(runtime)  # type: ignore[arg-type]  # a library has any function


def test_bytes_go_to_the_device_and_back_and_all_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_driver", lambda: "")
    runtime = FakeRuntime()
    device = cuda(runtime)
    assert device.properties == module.Properties("NVIDIA H200", "9.0", "CUDA 13.2", 20)
    address, host, stream = device.allocate(256), device.pin(100), device.open_stream()
    host[:] = np.arange(100)
    device.copy_in(address, host, stream)
    host[:] = 0
    device.copy_out(host[10:20], address + 10, stream)
    device.synchronise(stream)
    assert host.tolist() == [0] * 10 + list(range(10, 20)) + [0] * 80
    assert runtime.copies == [(100, 1), (10, 2)]
    device.free(address)
    device.unpin(host)
    device.close_stream(stream)
    assert not runtime.kept


@pytest.mark.parametrize(
    ("function", "act"),
    [
        ("cudaMalloc", lambda device: device.allocate(1)),
        ("cudaHostAlloc", lambda device: device.pin(1)),
        ("cudaStreamCreateWithFlags", lambda device: device.open_stream()),
        ("cudaStreamSynchronize", lambda device: device.synchronise(1)),
        ("cudaStreamDestroy", lambda device: device.close_stream(1)),
        ("cudaFree", lambda device: device.free(1)),
        ("cudaMemcpyAsync", lambda device: device.copy_in(1, np.zeros(1, np.uint8), 1)),
        ("cudaMemcpyAsync", lambda device: device.copy_out(np.zeros(1, np.uint8), 1, 1)),
    ],
)
def test_every_code_is_looked_at(function: str, act: Any) -> None:
    runtime = FakeRuntime()
    device = cuda(runtime)
    runtime.codes[function] = 700
    with pytest.raises(DeviceFault, match=rf"^{function}: cudaErrorIllegalAddress \(700\)$"):
        act(device)
    runtime.codes[function] = 9999
    with pytest.raises(DeviceFault, match=rf"^{function}: an unknown error \(9999\)$"):
        act(device)
    runtime.codes[function] = 2
    before = runtime.forgotten
    with pytest.raises(DeviceFull, match=f"^{function}: the device has no memory left"):
        act(device)
    assert (before, runtime.forgotten) == (0, 1)  # or a library that shares the runtime hears of it


def test_looking_at_a_device_makes_no_context_on_it() -> None:
    """The supervisor looks too, and would hold some hundred megabytes of a context as long as it lives."""
    runtime = FakeRuntime()
    cuda(runtime)
    assert set(runtime.called) == {
        "cudaGetDeviceCount",
        "cudaDeviceGetAttribute",
        "cudaGetDeviceProperties",
        "cudaDriverGetVersion",
    }


def test_no_device_is_told_from_a_broken_one() -> None:
    with pytest.raises(NoEngine, match="no CUDA device: the driver counts none"):
        cuda(FakeRuntime(devices=0))
    runtime = FakeRuntime()
    runtime.codes["cudaGetDeviceCount"] = 35
    with pytest.raises(NoEngine, match=r"no CUDA device: cudaErrorInsufficientDriver \(35\)"):
        cuda(runtime)


def test_the_fake_devices_have_the_same_methods() -> None:
    promised = {name for name in dir(module.Device) if not name.startswith("_")}
    for kind in (MemoryDevice, CudaDevice):
        assert promised - {"properties"} <= set(dir(kind))


def test_the_drivers_own_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "version"
    assert module._driver(path) == ""
    path.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\nGCC version: 13.2\n")
    assert module._driver(path) == "580.65.06"
    path.write_text("")
    assert module._driver(path) == ""


def test_a_library_that_finds_no_device_is_passed_over_for_an_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    newer, older = FakeRuntime(), FakeRuntime()
    newer.codes["cudaGetDeviceCount"] = 35
    opened = {"new": newer, "old": older}

    def load(path: str) -> Any:
        if path not in opened:
            raise OSError(path)
        return opened[path]

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(module, "_libraries", lambda: iter(["missing", "new", "old"]))
    assert open_device().properties.name == "NVIDIA H200"
    del opened["old"]
    with pytest.raises(NoEngine, match="cudaErrorInsufficientDriver"):
        open_device()
    opened.clear()
    with pytest.raises(NoEngine, match="no CUDA runtime"):
        open_device()


def test_the_library_is_looked_for_in_packages_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "nvidia/cu13/lib/libcudart.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert str(library) in list(module._libraries())
    assert list(module._libraries())[-1].endswith("libcudart.so.12")


def test_the_real_library_has_every_function_and_says_that_there_is_no_device() -> None:
    """`libcudart` is an ordinary library, and answers without a driver; it is here where some package brought it."""
    for path in module._libraries():
        try:
            real = ctypes.CDLL(path)
        except OSError:
            continue
        break
    else:
        pytest.skip("no libcudart here")
    for name in FakeRuntime.__dict__:
        if name.startswith("_cuda"):
            assert hasattr(real, name[1:]), name
    try:
        found = CudaDevice(real)
    except NoEngine as error:
        assert "no CUDA device: cudaError" in str(error)
    else:
        assert found.properties.compute_capability
