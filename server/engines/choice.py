"""Which engine serves a bundle on this machine: what `--engine` asks for, or with `auto` the best that is here.

    auto         model.plan, where it fits this GPU  ->  ONNX Runtime on the GPU  ->  ONNX Runtime on the CPU
    tensorrt     model.plan, or the model is not served
    cuda         ONNX Runtime on the GPU, or the server does not start
    onnxruntime  ONNX Runtime on the CPU

Nothing falls back in silence. What was asked for by name is served or refused; what `auto` passed over stands in the
log and in `/v1/models`, with the reason.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from server.bundle_files import MODEL_FILE
from server.engines import Engine
from server.engines.device import Device, open_device
from server.engines.passport import Machine, largest_batch, misfit, platform_here, read_plan
from server.engines.provider import CUDA, Provider
from server.errors import DeviceFault, DeviceFull, NoEngine
from server.manifest import Bundle
from server.preprocess import FixedInput

log = logging.getLogger("maskserve")

EngineName = Literal["auto", "onnxruntime", "cuda", "tensorrt"]
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # of the packages in a passport


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings say of engines.

    Args:
        threads: cores one run may use, on the CPU.
        max_batch: images in a run; None: as many as the bundle says.
        max_batch_pixels: input pixels of a run of several images.
        cuda_graphs: shapes that ONNX Runtime records on a GPU, for each of its streams.
        graph_file: where processes of this machine share the graph they have made ready, see `ready_graph`.
    """

    threads: int
    engine: EngineName = "auto"
    max_batch: int | None = None
    max_batch_pixels: int = 1_100_000
    cuda_graphs: int = 0
    graph_file: int | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine, and what belongs to it."""

    engine: Engine
    precision: str
    max_batch: int  # images a run may have
    tried: int  # images in the largest run whose memory is taken already; batches grow from there


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve a bundle; `open` raises a `StartupError` where it cannot be."""

    name: str  # for people
    open: Callable[[], Opened]


@dataclass(frozen=True, slots=True)
class Here:
    """What this machine has for engines.

    Args:
        device: the GPU.
        no_device: why there is none.
        bindings: the Python module of `tensorrt` or `tensorrt-rtx`, None where it is not installed.
        provider: of ONNX Runtime, that runs on `device`.
    """

    device: Device | None
    no_device: str = ""
    platform: str = platform_here()
    bindings: Callable[[str], Any] = lambda package: None
    provider: Provider = CUDA


@functools.cache
def here() -> Here:
    """This machine, looked at once."""
    try:
        return Here(open_device(), bindings=_bindings)
    except NoEngine as error:
        return Here(None, str(error), bindings=_bindings)


def check_start(engine: EngineName, machine: Callable[[], Here] = here) -> None:
    """Refuse at once what no bundle could be served with.

    Raises:
        NoEngine: says what to install, or that the GPU failed.
    """
    if engine in ("auto", "onnxruntime"):
        return
    try:
        found = machine()
    except DeviceFault as fault:
        raise NoEngine(f"--engine {engine}: the GPU failed: {fault}") from fault
    if engine == "cuda":
        from server.engines.onnxruntime_cuda import check_provider

        check_provider(found.provider)
    elif all(found.bindings(package) is None for package in MODULES):
        raise NoEngine("--engine tensorrt: neither tensorrt nor tensorrt-rtx is installed here; see docs/tensorrt.md")
    _device(found)


def candidates(bundle: Bundle, wanted: Wanted, machine: Here) -> tuple[list[Candidate], str]:
    """The ways to serve a bundle, the best first, and what is to be said of those that are not even tried."""
    cpu = Candidate("ONNX Runtime on the CPU", lambda: _open_cpu(bundle, wanted))
    cuda = Candidate("ONNX Runtime on the GPU", lambda: _open_cuda(bundle, wanted, machine))
    tensorrt = Candidate("TensorRT", lambda: _open_tensorrt(bundle, wanted, machine))
    match wanted.engine:
        case "onnxruntime":
            return [cpu], ""
        case "cuda":
            return [cuda], ""
        case "tensorrt":
            return [tensorrt], ""
        case "auto":
            has_plan = bundle.manifest.plan is not None
            if machine.device is None:
                return [cpu], f"model.plan is not used, {machine.no_device}" if has_plan else ""
            return [tensorrt, cuda, cpu] if has_plan else [cuda, cpu], ""


def _open_cpu(bundle: Bundle, wanted: Wanted) -> Opened:
    from server.engines import load_engine

    engine = load_engine(bundle.folder / MODEL_FILE, wanted.threads, wanted.graph_file)
    return Opened(engine, bundle.manifest.precision, _max_batch(bundle, wanted), tried=1)


def _open_cuda(bundle: Bundle, wanted: Wanted, machine: Here) -> Opened:
    from server.engines.onnxruntime_cuda import Largest, OnnxRuntimeCuda, check_provider

    check_provider(machine.provider)
    device, images = _device(machine), _max_batch(bundle, wanted)
    largest = Largest(max(images, 2), _most_pixels(bundle, wanted))
    path, provider, graphs = bundle.folder / MODEL_FILE, machine.provider, wanted.cuda_graphs
    engine = _with_room(lambda: OnnxRuntimeCuda(path, device, largest, provider=provider, graphs=graphs))
    return Opened(engine, bundle.manifest.precision, images, tried=images)


def _open_tensorrt(bundle: Bundle, wanted: Wanted, machine: Here) -> Opened:
    from server.engines.tensorrt import TensorRT

    device = _device(machine)
    properties = device.properties
    reason = misfit(bundle, Machine(machine.platform, properties.compute_capability, properties.name, machine.bindings))
    passport = bundle.manifest.plan
    if reason is not None or passport is None:
        raise NoEngine(reason or "the bundle has no model.plan")
    plan = read_plan(bundle)
    if isinstance(plan, str):
        raise NoEngine(plan)
    trt = machine.bindings(passport.package)
    engine = _with_room(lambda: TensorRT(trt, plan, device, passport.package))
    most = min(_max_batch(bundle, wanted), largest_batch(passport))
    return Opened(engine, passport.precision, most, tried=most)


def _with_room(make: Callable[[], Engine]) -> Engine:
    try:
        return make()
    except DeviceFull as error:
        raise NoEngine(f"{error}; lower --max-batch or --max-batch-megapixels, or serve fewer models") from error


def _device(machine: Here) -> Device:
    if machine.device is None:
        raise NoEngine(machine.no_device)
    return machine.device


def _max_batch(bundle: Bundle, wanted: Wanted) -> int:
    return min(wanted.max_batch or bundle.manifest.max_batch, bundle.manifest.max_batch)


def _most_pixels(bundle: Bundle, wanted: Wanted) -> int:
    """Of the largest run: one image always fits, and two of the golden sample are run to see what a batch costs."""
    spec = bundle.manifest.input
    height, width = spec.size if isinstance(spec, FixedInput) else spec.max_size
    return max(2 * height * width, wanted.max_batch_pixels)


def _bindings(package: str) -> Any:
    try:
        return importlib.import_module(MODULES[package])
    except ModuleNotFoundError:
        return None
    except Exception as error:  # a library that it needs is missing, or of another CUDA
        log.warning("%s is installed, and does not load: %s", package, error)
        return None
