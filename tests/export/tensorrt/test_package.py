"""Which builder is there, and that both of them have the words that are used."""

from __future__ import annotations

import ast
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from export.errors import ExportError
from export.tensorrt import package
from export.tensorrt.package import Package, compute_capabilities, find, gpu
from server.engines.device import Properties
from server.errors import DeviceFault, DeviceFull, NoEngine
from tests.conftest import ROOT

FULL = Package("tensorrt", "11.4.0", SimpleNamespace(), False, True, True, True)
HERE = Properties("NVIDIA L4", "8.9", "580.65.06", 24 << 30)

# Of the objects that TensorRT hands out, what this package asks of them.
METHODS = {
    "Builder": ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"),
    "INetworkDefinition": ("num_layers", "get_layer", "num_inputs", "get_input", "num_outputs"),
    "ILayer": ("type", "name", "get_input", "get_output"),
    "ITensor": ("name", "shape", "dtype"),
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "ParserError": ("desc", "node_name", "node_operator"),
    "IBuilderConfig": (
        "builder_optimization_level",
        "profiling_verbosity",
        "set_memory_pool_limit",
        "set_flag",
        "clear_flag",
        "hardware_compatibility_level",
        "add_optimization_profile",
        "progress_monitor",
        "create_timing_cache",
        "set_timing_cache",
        "get_timing_cache",
    ),
    "ITimingCache": ("serialize",),
    "IOptimizationProfile": ("set_shape",),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": ("create_engine_inspector",),
    "EngineInspector": ("get_engine_information",),
}
RTX_ALONE = {"IBuilderConfig": ("num_compute_capabilities", "set_compute_capability")}

# What TensorRT 11 no longer has, as introspected in its bindings; old tools die of it or build fp32.
GONE_IN_11 = {
    "FP16", "BF16", "INT8", "FP8", "EXPLICIT_BATCH", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS",
    "REJECT_EMPTY_ALGORITHMS", "platform_has_fast_fp16", "platform_has_fast_int8", "QuantizationFlag",
    "IAlgorithmSelector", "max_workspace_size", "build_engine", "device_memory_size", "num_bindings",
}  # fmt: skip


def used_names() -> set[str]:
    """`trt.A.B` wherever the package says it, without the `trt`."""
    found = set()
    for path in (ROOT / "export" / "tensorrt").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts: list[str] = []
            inner: ast.AST = node
            while isinstance(inner, ast.Attribute):
                parts.insert(0, inner.attr)
                inner = inner.value
            if parts and isinstance(inner, ast.Name) and inner.id == "trt":
                found.add(".".join(parts))
    return found


def test_every_name_that_is_used_is_in_the_real_bindings(rtx: Package) -> None:
    names = used_names()
    assert {"BuilderFlag.TF32", "LayerType.DEQUANTIZE", "ILogger", "Runtime"} <= names
    assert not [name for name in names if "plugin" in name]  # the twin needs none, and the server loads none
    absent = []
    for name in sorted(names - {"__version__"}):
        value: Any = rtx.trt
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            absent.append(name)
    assert not absent


@pytest.mark.parametrize("table", [METHODS, RTX_ALONE])
def test_every_method_that_is_used_is_in_the_real_bindings(rtx: Package, table: dict[str, tuple[str, ...]]) -> None:
    absent = [
        f"{kind}.{name}" for kind, names in table.items() for name in names if not hasattr(getattr(rtx.trt, kind), name)
    ]
    assert not absent


def test_the_table_of_methods_is_whole_and_names_nothing_that_tensorrt_11_dropped() -> None:
    listed = {name for table in (METHODS, RTX_ALONE) for names in table.values() for name in names}
    tree = ast.parse((ROOT / "export" / "tensorrt" / "building.py").read_text(encoding="utf-8"))
    objects = {
        "builder",
        "network",
        "config",
        "parser",
        "made",
        "runtime",
        "engine",
        "layer",
        "tensor",
        "first",
        "error",
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in objects
    }
    assert used - {"strerror"} <= listed
    everything = listed | {part for name in used_names() for part in name.split(".") if not name.startswith("DataType")}
    assert not everything & (GONE_IN_11 - {"INT8", "FP8", "BF16"})
    assert not {f"BuilderFlag.{name}" for name in GONE_IN_11} & used_names()


def test_without_a_builder_it_says_which_to_install_for_which_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ExportError, match=r"no TensorRT builder is installed: 'pip install tensorrt-rtx-cu13' for GeForce"
    ):
        find("auto")
    with pytest.raises(ExportError, match="tensorrt is not installed"):
        find("tensorrt")


def test_auto_takes_tensorrt_where_both_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0.106"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.7.1.116"))
    assert find("auto").name == "tensorrt"
    assert find("tensorrt-rtx").version == "1.7.1.116"


@pytest.mark.parametrize(
    ("version", "right"), [("10.12.0.36", False), ("8.6.1", False), ("10.13.2.6", True), ("11.0.0", True)]
)
def test_a_tensorrt_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, version: str, right: bool) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
    if right:
        assert find("tensorrt").version == version
    else:
        with pytest.raises(ExportError, match=rf"tensorrt {version} is installed; 10\.13 or later is needed"):
            find("tensorrt")


def test_an_engine_for_other_machines_names_its_targets(rtx: Package) -> None:
    assert compute_capabilities(rtx, [], None) == ["8.0", "8.6", "8.9", "12.0", "12.1"]
    assert compute_capabilities(rtx, ["8.6", "7.5", "8.6"], HERE) == ["8.6", "7.5"]
    with pytest.raises(ExportError, match=r"--compute-capability 9\.0: tensorrt-rtx .* builds for 7\.5, 8\.0, 8\.6"):
        compute_capabilities(rtx, ["9.0"], None)


def test_tensorrt_builds_for_the_gpu_of_its_machine_alone() -> None:
    assert compute_capabilities(FULL, [], HERE) == ["8.9"] == compute_capabilities(FULL, ["8.9"], HERE)
    with pytest.raises(
        ExportError, match=r"CUDA finds none here \(.*\); build there, or take '--builder tensorrt-rtx'"
    ):
        compute_capabilities(FULL, [], None)
    with pytest.raises(ExportError, match=r"of this machine alone, which has 8\.9"):
        compute_capabilities(FULL, ["8.6"], HERE)


def test_the_gpu_is_the_one_that_the_server_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "open_device", lambda: SimpleNamespace(properties=HERE))
    assert gpu() == HERE


@pytest.mark.parametrize("error", [NoEngine("no CUDA device"), DeviceFault("999"), DeviceFull("2")])
def test_a_machine_whose_gpu_does_not_answer_has_none(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise error

    monkeypatch.setattr(package, "open_device", absent)
    assert gpu() is None
