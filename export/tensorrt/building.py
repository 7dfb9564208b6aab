"""The twin in, an engine out: strongly typed, so that every tensor has the type that the graph gives it.

TensorRT 11 knows nothing else; of 10 it is asked for, because there the old way builds fp32 whatever was meant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from export.errors import ExportError
from export.tensorrt import reading
from export.tensorrt.listening import in_short, log_of, monitor_of
from export.tensorrt.options import Options
from export.tensorrt.package import Package, targets
from export.tensorrt.reading import Layer
from server.manifest import Profile


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
    log = log_of(trt)
    try:
        builder = trt.Builder(log)
    except Exception:
        raise ExportError(f"{package.name} {package.version} finds no usable GPU to build on: {log.last()}") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, log, twin)
    asked = products_of(trt, network)
    config = _configure(package, builder, options)
    for profile in profiles:
        _add_profile(builder, config, network, profile, log)
    cache = _load_timing_cache(config, options.timing_cache) if options.timing_cache is not None else None
    config.progress_monitor = monitor_of(trt, say)

    began = time.monotonic()
    blob = builder.build_serialized_network(network, config)
    seconds = time.monotonic() - began
    if blob is None:
        reason = in_short(log.last() or "the builder gave no reason")
        if "OutOfMemory" in reason and options.workspace_mb is not None:
            raise ExportError(
                f"--workspace {options.workspace_mb} is too little for a layer of the largest shape: {reason}; "
                "give more, or a smaller --max-batch"
            )
        raise Refused(reason)
    data = bytes(blob)
    layers, source = _read_back(trt, log, data, asked)
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
            raise Refused(in_short(log.last() or "the parser gave no reason"))
        error = parser.get_error(0)
        raise Refused(in_short(error.desc()), error.node_name(), error.node_operator())
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
            f"the builder takes no profile {profile.smallest} to {profile.largest}: {in_short(log.last())}"
        )


def _read_back(trt: Any, log: Any, data: bytes, asked: dict[str, str]) -> tuple[list[Layer], str]:
    """The layers, and who told: the engine where it can be loaded and names what was asked for, else the builder.

    Raises:
        ExportError: neither the engine nor the builder tells what it computes in.
    """
    listed = reading.layers_of_log(log.layers())
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(data) if runtime is not None else None
    if engine is not None:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        layers = reading.layers_of_inspector(text)
        if not listed or reading.products_found(layers, asked):
            return layers, "engine"
    if not listed:
        raise ExportError(
            "the engine cannot be loaded here and its builder does not list its layers, so its precision cannot be "
            "proven; build it on a machine with the GPU that it is for"
        )
    return listed, "builder"


def _load_timing_cache(config: Any, path: Path) -> int:
    """
    Raises:
        ExportError: it cannot be read, belongs to another version or GPU, or has no folder to be kept in.
    """
    if not path.parent.is_dir():
        raise ExportError(f"--timing-cache {path} cannot be kept: there is no folder {path.parent}; make it first")
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
