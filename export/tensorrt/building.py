"""The twin in, an engine out: strongly typed, so that every tensor has the type that the graph gives it.

TensorRT 11 knows nothing else; of 10 it is asked for, because there the old way builds fp32 whatever was meant.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from export.errors import ExportError
from export.tensorrt import reading
from export.tensorrt.options import Options
from export.tensorrt.package import Package, targets
from export.tensorrt.reading import Layer
from server.manifest import Profile

SAYING_EVERY_S = 5.0  # a phase that takes longer says how far it is
LONG_S = 1.0  # and one that took longer, what it took


class Refused(Exception):
    """The parser or the builder will not have the graph. `node` and `operator` are empty where it does not say."""

    def __init__(self, reason: str, node: str = "", operator: str = "") -> None:
        super().__init__(reason)
        self.reason, self.node, self.operator = reason, node, operator


class Built(BaseModel):
    """What is known of an engine that was built."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    plan_bytes: int
    device_memory_bytes: int | None  # that one running engine takes beside its weights, for its largest profile
    layers: list[Layer]
    layers_read_from: str  # "engine" or "builder", as in the passport
    asked: dict[str, str]  # products of the network, by name, and the type that it gives them
    warnings: list[str]
    timing_cache_bytes: int | None


def build(
    package: Package,
    twin: Path,
    plan: Path,
    profiles: Sequence[Profile],
    options: Options,
    say: Callable[[str], None],
) -> Built:
    """Parse, build, read back, and write `plan`.

    Args:
        say: takes a line of progress.

    Raises:
        Refused: the parser or the builder will not have the graph.
        ExportError: anything else that the caller can put right.
    """
    trt = package.trt
    log = _log(trt)
    try:
        builder = trt.Builder(log)
    except Exception:
        raise ExportError(f"{package.name} {package.version} finds no usable GPU to build on: {log.last()}") from None
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(log, "")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, log, twin)
    asked = products_of(trt, network)
    config = _configure(package, builder, options)
    for profile in profiles:
        _add_profile(builder, config, network, profile, log)
    cache = _load_timing_cache(config, options.timing_cache) if options.timing_cache is not None else None
    config.progress_monitor = _monitor(trt, say)

    began = time.monotonic()
    blob = builder.build_serialized_network(network, config)
    seconds = time.monotonic() - began
    if blob is None:
        reason = _in_short(log.last() or "the builder gave no reason")
        if "OutOfMemory" in reason and options.workspace_mb is not None:
            raise ExportError(
                f"--workspace {options.workspace_mb} is too little for a layer of the largest shape: {reason}; "
                "give more, or a smaller --max-batch"
            )
        raise Refused(reason)
    data = bytes(blob)
    layers, source = _read_back(trt, log, data)
    plan.write_bytes(data)
    if options.timing_cache is not None:
        cache = _save_timing_cache(config, options.timing_cache)
    return Built(
        seconds=seconds,
        plan_bytes=len(data),
        device_memory_bytes=log.device_memory(),
        layers=layers,
        layers_read_from=source,
        asked=asked,
        warnings=log.warnings(),
        timing_cache_bytes=cache,
    )


def products_of(trt: Any, network: Any) -> dict[str, str]:
    """Convolutions and matrix products of a parsed network, by name, and the type that it asks for them.

    What is dequantised right before a product is asked for in int8: the builder is to draw the two together.
    """
    kinds = {
        trt.LayerType.CONVOLUTION,
        trt.LayerType.DECONVOLUTION,
        trt.LayerType.MATRIX_MULTIPLY,
        trt.LayerType.EINSUM,
    }
    names = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16", trt.DataType.FP8: "fp8"}
    quantised = set()
    found = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.DEQUANTIZE and layer.get_input(0).dtype == trt.DataType.INT8:
            quantised.add(layer.get_output(0).name)
        elif layer.type in kinds:
            first = layer.get_input(0)
            found[layer.name] = "int8" if first.name in quantised else names.get(first.dtype, reading.OTHER)
    return {name: type_ for name, type_ in found.items() if type_ != reading.OTHER}


def _parse(trt: Any, network: Any, log: Any, twin: Path) -> None:
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(twin)):
        if not parser.num_errors:
            raise Refused(_in_short(log.last() or "the parser gave no reason"))
        error = parser.get_error(0)
        raise Refused(_in_short(error.desc()), error.node_name(), error.node_operator())
    if not network.num_outputs:
        raise Refused("the file holds no graph")


def _configure(package: Package, builder: Any, options: Options) -> Any:
    trt = package.trt
    config = builder.create_builder_config()
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the layers have no types to read
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        # Without its own runtime inside: that would be code in a bundle, which the server does not run.
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if options.hardware != "none":
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, options.hardware.upper())
    if package.builds_for_others:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(targets(package)[capability], index)
    return config


def _add_profile(builder: Any, config: Any, network: Any, profile: Profile, log: Any) -> None:
    """
    Raises:
        ExportError: the graph and the manifest do not agree about the shapes.
    """
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        axes = [int(length) for length in tensor.shape]
        if tensor.name not in profile.largest:
            raise ExportError(
                f"the graph has an input '{tensor.name}' of which the manifest knows nothing; export it again"
            )
        for shape in (profile.smallest[tensor.name], profile.largest[tensor.name]):
            fits = len(shape) == len(axes) and all(axis in (-1, side) for axis, side in zip(axes, shape, strict=True))
            if not fits:
                raise ExportError(
                    f"input '{tensor.name}' should take {shape} by the manifest; model.trt.onnx takes "
                    f"{['any' if axis == -1 else axis for axis in axes]}; export it again"
                )
        made.set_shape(
            tensor.name, profile.smallest[tensor.name], profile.best[tensor.name], profile.largest[tensor.name]
        )
    if config.add_optimization_profile(made) < 0:
        raise ExportError(
            f"the builder takes no profile {profile.smallest} to {profile.largest}: {_in_short(log.last())}"
        )


def _read_back(trt: Any, log: Any, data: bytes) -> tuple[list[Layer], str]:
    """
    Raises:
        ExportError: neither the engine nor the builder tells what it computes in.
    """
    built = log.layers()
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(data) if runtime is not None else None
    if engine is not None:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        return reading.layers_of_inspector(text), "engine"
    if not built:
        raise ExportError(
            "the engine cannot be loaded here and its builder does not list its layers, so its precision cannot be "
            "proven; build it on a machine with the GPU that it is for"
        )
    return reading.layers_of_log(built), "builder"


def _load_timing_cache(config: Any, path: Path) -> int:
    """
    Raises:
        ExportError: it cannot be read, or belongs to another version or GPU.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise ExportError(f"cannot read --timing-cache {path}: {error.strerror}") from None
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise ExportError(
            f"--timing-cache {path} was written by another TensorRT or for another GPU; give another file, or delete it"
        )
    return len(data)


def _save_timing_cache(config: Any, path: Path) -> int:
    data = bytes(config.get_timing_cache().serialize())
    beside = path.with_name(f".{path.name}.writing")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        raise ExportError(f"cannot write --timing-cache {path}: {error.strerror}") from None
    return len(data)


def _in_short(message: str) -> str:
    """The first sentence that says something, without where in TensorRT's sources it was said."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Invalid Node"):
        lines = lines[1:]
    text = re.sub(r"^\[[\w.:]+\] ", "", (lines or [""])[0])  # [file.cpp::function::line]
    text = re.sub(r"^\w+::\w+: ", "", text)  # IBuilder::buildSerializedNetwork:
    text = re.sub(r"^Error Code \d+: ", "", text).split(" In ")[0]
    return text.replace("Assertion failed: ", "").strip(" (").rstrip(".")[:300]


def _log(trt: Any) -> Any:
    """A logger of TensorRT's that keeps what matters and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []
            self._warnings: dict[str, None] = {}
            self._layers = ""
            self._memory: int | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self._errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self._warnings[message] = None
            elif message.startswith(reading.LIST_BEGINS):
                self._layers = message
            elif message.startswith("Total Activation Memory: "):
                self._memory = int(message.split()[3])

        def last(self) -> str:
            """The last error that is the graph's: without a GPU, TensorRT complains of that after every other."""
            graph = [message for message in self._errors if "catchCudaError" not in message]
            return str((graph or self._errors or [""])[-1])

        def warnings(self) -> list[str]:
            return list(self._warnings)

        def layers(self) -> str:
            return self._layers

        def device_memory(self) -> int | None:
            return self._memory

    return Log()


def _monitor(trt: Any, say: Callable[[str], None]) -> Any:
    """TensorRT's phases as lines: what takes long says how far it is, and what took long, how long."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._began: dict[str, float] = {}
            self._steps: dict[str, int] = {}
            self._said = time.monotonic()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._began[phase], self._steps[phase] = time.monotonic(), steps

        def step_complete(self, phase: str, step: int) -> bool:
            now = time.monotonic()
            if now - self._said >= SAYING_EVERY_S:
                self._said = now
                say(f"{phase}: {step} of {self._steps.get(phase, step)}")
            return True

        def phase_finish(self, phase: str) -> None:
            seconds = time.monotonic() - self._began.pop(phase, time.monotonic())
            if seconds >= LONG_S:
                self._said = time.monotonic()
                say(f"{phase}: {seconds:.1f} s")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Monitor()
