"""Which builder is installed. All that differs between `tensorrt` and `tensorrt-rtx` stands here, as data.

    tensorrt        builds on the GPU that will run the engine, and measures its kernels there
    tensorrt-rtx    builds anywhere, without a GPU too, and compiles its kernels on the GPU when the engine is loaded

Both have one API. `pip install` of either brings parser, builder and runtime.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from export.errors import ExportError
from server.engines.device import Properties, open_device
from server.errors import EngineError, NoEngine

Name = Literal["tensorrt", "tensorrt-rtx"]
OLDEST = {"tensorrt": (10, 13), "tensorrt-rtx": (1, 5)}  # older ones lack what the builder is asked for
OLDEST_PORTABLE = (8, 0)  # tensorrt-rtx: without --compute-capability, engines run on Ampere and everything later


@dataclass(frozen=True, slots=True)
class Package:
    """An installed builder. `trt` is its Python module, which has no types."""

    name: Name
    version: str
    trt: Any
    builds_for_others: bool  # compute capabilities are chosen, and no GPU is needed
    has_timing_cache: bool
    has_hardware_levels: bool
    has_version_compatibility: bool  # a later release may run an engine of this one


MODULES: dict[Name, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def find(wanted: Literal["auto"] | Name) -> Package:
    """`auto` takes `tensorrt` where both are installed.

    Raises:
        ExportError: it is not installed, cannot be loaded, or is too old.
    """
    for name, module in MODULES.items():
        if wanted not in {"auto", name}:
            continue
        try:
            trt = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # a library that it needs is missing or of another CUDA
            raise ExportError(f"{name} is installed and does not load: {_first_line(error)}") from None
        return _described(name, trt)
    what = "no TensorRT builder is" if wanted == "auto" else f"{wanted} is not"
    raise ExportError(
        f"{what} installed: 'pip install tensorrt-rtx-cu13' for GeForce and RTX cards (it builds on any machine), "
        "'pip install tensorrt-cu13' for all others, on the machine that will run the engine; docs/tensorrt.md"
    )


def _described(name: Name, trt: Any) -> Package:
    version = str(trt.__version__)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST[name]:
        oldest = ".".join(map(str, OLDEST[name]))
        raise ExportError(f"{name} {version} is installed; {oldest} or later is needed: pip install --upgrade")
    rtx = name == "tensorrt-rtx"
    return Package(
        name,
        version,
        trt,
        builds_for_others=rtx,
        has_timing_cache=not rtx,
        has_hardware_levels=not rtx,
        has_version_compatibility=not rtx,
    )


def gpu() -> Properties | None:
    """The first that CUDA shows to this process, as the server finds it: TensorRT builds on that one. None without."""
    try:
        return open_device().properties
    except (NoEngine, EngineError):
        return None


def compute_capabilities(package: Package, asked: Sequence[str], here: Properties | None) -> list[str]:
    """What an engine is built for, as in ['8.6', '12.0'].

    Raises:
        ExportError: the builder has no such target, or builds only for the GPU of this machine.
    """
    if not package.builds_for_others:
        if here is None:
            raise ExportError(
                f"{package.name} builds on the GPU that will run the engine, and CUDA finds none here "
                "(it takes the driver, and libcudart as in requirements/gpu.txt); build there, or take "
                "'--builder tensorrt-rtx'"
            )
        if asked and list(asked) != [here.compute_capability]:
            raise ExportError(
                f"--compute-capability {','.join(asked)}: {package.name} builds for the GPU of this machine alone, "
                f"which has {here.compute_capability}; leave it out, or take '--builder tensorrt-rtx'"
            )
        return [here.compute_capability]
    known = targets(package)
    unknown = [capability for capability in asked if capability not in known]
    if unknown:
        raise ExportError(
            f"--compute-capability {','.join(unknown)}: {package.name} {package.version} builds for {', '.join(known)}"
        )
    return list(dict.fromkeys(asked)) or [name for name in known if _numbers(name) >= OLDEST_PORTABLE]


def targets(package: Package) -> dict[str, Any]:
    """Compute capability -> the bindings' name for it, of a builder that builds for other machines: '8.6' is SM86."""
    found = {}
    for name, value in package.trt.ComputeCapability.__members__.items():
        match = re.fullmatch(r"SM(\d+)(\d)", name)
        if match:
            found[f"{match[1]}.{match[2]}"] = value
    return dict(sorted(found.items(), key=lambda entry: _numbers(entry[0])))


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(number) for number in capability.split("."))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
