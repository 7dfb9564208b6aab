"""The real builder, on a CPU: engines of graphs made by hand, and what is refused in which words."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.plan import refusal
from export.tensorrt import building, naming
from export.tensorrt.building import Built, Refused, build
from export.tensorrt.listening import log_of, monitor_of
from export.tensorrt.options import Options
from export.tensorrt.package import Package
from export.tensorrt.profiles import profiles_for
from export.tensorrt.reading import Precision, check_precision, products_found
from export.tensorrt.worker import build_apart
from server.manifest import Profile
from server.preprocess import FixedInput
from tests.export.tensorrt.toys import SIDE, write_toy

AMPERE = Options(compute_capabilities=["8.6"])
PROFILES = profiles_for(FixedInput(size=(SIDE, SIDE), resize="stretch"), ["images"], 4)


def built(
    rtx: Package, path: Path, options: Options = AMPERE, profiles: list[Profile] = PROFILES
) -> tuple[Built, bytes]:
    plan = path.with_suffix(".plan")
    return build(rtx, path, plan, profiles, options, lambda line: None), plan.read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_the_engine_computes_in_is_read_from_its_layers(
    rtx: Package, precision: Precision, tmp_path: Path
) -> None:
    engine, plan = built(rtx, write_toy(tmp_path / "toy.onnx", precision))
    assert len(plan) == engine.plan_bytes > 10_000
    assert engine.asked == {f"node_conv_{index}": precision for index in range(3)}
    found = products_found(engine.layers, engine.asked)
    assert Counter(found.values()) == {precision: 3}
    assert check_precision(precision, engine.asked, found) == 1.0
    assert engine.layers_read_from == "builder"
    assert engine.device_memory_bytes


def test_an_engine_that_is_not_what_the_manifest_says_is_refused(rtx: Package, tmp_path: Path) -> None:
    engine, _ = built(rtx, write_toy(tmp_path / "toy.onnx", "fp32"))
    with pytest.raises(ExportError, match=r"the manifest says fp16 and model\.trt\.onnx computes nothing in it"):
        check_precision("fp16", engine.asked, products_found(engine.layers, engine.asked))


def test_tf32_is_off_unless_asked_for(rtx: Package, tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "toy.onnx")
    assert b"tf32=0" in built(rtx, toy)[1]
    assert b"tf32=1" in built(rtx, toy, AMPERE.model_copy(update={"tf32": True}))[1]


def test_an_engine_is_for_the_gpus_that_were_named(rtx: Package, tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "toy.onnx")
    assert b"accelerators={sm86 }" in built(rtx, toy)[1]
    both = Options(compute_capabilities=["8.9", "12.0"])
    assert b"accelerators={sm89 sm120 }" in built(rtx, toy, both)[1]


def test_a_version_compatible_engine_carries_no_runtime(rtx: Package, tmp_path: Path) -> None:
    options = AMPERE.model_copy(update={"version_compatible": True, "level": 0, "workspace_mb": 512})
    engine, plan = built(rtx, write_toy(tmp_path / "toy.onnx"), options)
    assert b"version_compatible=1" in plan
    assert engine.plan_bytes < 5_000_000  # the lean runtime alone has tens of megabytes


def node(operator: str, inputs: list[str], **attributes: Any) -> Any:
    return helper.make_node(operator, inputs, ["changed"], name=f"node_{operator.lower()}_7", **attributes)


@pytest.mark.parametrize("scope", ["['', 'model', 'model.roi_heads', 'model.roi_heads.pick', 'op']", None])
def test_a_refused_operator_is_named_with_its_node_and_its_module(
    rtx: Package, scope: str | None, tmp_path: Path
) -> None:
    deform = node("DeformConv", ["pixels", "kernel", "pixels"], kernel_shape=[3, 3])
    kernel = helper.make_node("ConstantOfShape", ["model.roi_heads.pick.offset"], ["kernel"], name="node_kernel")
    toy = write_toy(tmp_path / "toy.onnx", before=(kernel, deform), scope=scope)
    add_shape(toy, "model.roi_heads.pick.offset")
    with pytest.raises(Refused) as refused:
        built(rtx, toy)
    said = refusal(rtx, toy, refused.value)
    assert said.startswith("tensorrt-rtx 1.7")
    assert "refuses the operator DeformConv (node 'node_deformconv_7', " in said
    assert ("in roi_heads.pick)" if scope else "after roi_heads.pick)") in said
    assert "\n" not in said


def test_an_exported_graph_knows_its_modules_and_no_paths(tiny_bundle: Path) -> None:
    path = tiny_bundle / "model.onnx"
    nodes = onnx.load(path).graph.node
    assert "in unet.down.0" in {naming.module_of(path, node.name) for node in nodes if node.op_type == "Relu"}
    outside = next(node for node in nodes if node.op_type == "Slice" and "model.unet" not in str(node.metadata_props))
    assert naming.module_of(path, outside.name).startswith("after unet.")
    assert not [entry for node in nodes for entry in node.metadata_props if "/" in entry.value or "\\" in entry.value]


def add_shape(path: Path, name: str) -> None:
    graph = onnx.load(path)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3, 3, 3, 3], np.int64), name))
    onnx.save(graph, path)


def test_what_the_builder_cannot_compile_is_named_too(rtx: Package, tmp_path: Path) -> None:
    toy = suppressing(tmp_path / "toy.onnx")
    with pytest.raises(Refused) as refused:
        built(rtx, toy)
    assert "refuses the operator NonMaxSuppression (node 'node_nms')" in refusal(rtx, toy, refused.value)


def suppressing(path: Path) -> Path:
    """A graph that parses, with an operator that has no kernel."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "as_boxes"], ["boxes"], name="boxes"),
        helper.make_node("Reshape", ["floats", "as_scores"], ["scores"], name="scores"),
        helper.make_node("Slice", ["scores", "zero", "some", "last"], ["few"], name="few"),
        helper.make_node("NonMaxSuppression", ["boxes", "few", "most", "iou"], ["kept"], name="node_nms"),
    ]
    constants = {
        "as_boxes": [0, -1, 4],
        "as_scores": [0, 1, -1],
        "zero": [0],
        "some": [SIDE * SIDE * 3 // 4],
        "last": [2],
        "most": [10],
    }
    graph = helper.make_graph(
        nodes,
        "nms",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("kept", TensorProto.INT64, ["M", 3])],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
        + [numpy_helper.from_array(np.array([0.5], np.float32), "iou")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_profile_that_cannot_hold_the_shapes_is_refused(rtx: Package, tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "toy.onnx")
    larger = profiles_for(FixedInput(size=(96, SIDE), resize="stretch"), ["images"], 4)
    with pytest.raises(
        ExportError, match=r"'images' should take \[1, 96, 64, 3\] by the manifest; model.trt.onnx takes \['any', 64"
    ):
        built(rtx, toy, profiles=larger)
    with pytest.raises(ExportError, match="an input 'images' of which the manifest knows nothing"):
        built(rtx, toy, profiles=[Profile(smallest={}, best={}, largest={})])


def test_a_file_that_is_no_graph_is_refused(rtx: Package, tmp_path: Path) -> None:
    broken = tmp_path / "toy.onnx"
    broken.write_bytes(b"this is no graph")
    with pytest.raises(Refused) as refused:
        built(rtx, broken)
    assert refused.value.reason


def test_a_timing_cache_is_made_kept_and_written_whole(rtx: Package, tmp_path: Path) -> None:
    """tensorrt-rtx has the words of a timing cache and no use for it: enough to run ours."""
    config = rtx.trt.Builder(log_of(rtx.trt)).create_builder_config()
    path = tmp_path / "kernels.cache"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert building._load_timing_cache(config, path) == 0
        written = building._save_timing_cache(config, path)
        assert building._load_timing_cache(config, path) == written == path.stat().st_size > 0
        with pytest.raises(ExportError, match=f"cannot read --timing-cache {tmp_path}"):
            building._load_timing_cache(config, tmp_path)
        with pytest.raises(ExportError, match="cannot write --timing-cache"):
            building._save_timing_cache(config, tmp_path / "nowhere" / "kernels.cache")
        with pytest.raises(ExportError, match=f"there is no folder {tmp_path / 'nowhere'}; make it first"):
            building._load_timing_cache(config, tmp_path / "nowhere" / "kernels.cache")
    assert list(tmp_path.iterdir()) == [path]


class _Logger:
    ERROR, WARNING = 1, 2


def test_a_builder_without_its_gpu_says_so_with_the_reason(tmp_path: Path) -> None:
    def builder(log: Any) -> None:
        log.log(_Logger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    package = Package("tensorrt", "11.4.0", SimpleNamespace(ILogger=_Logger, Builder=builder), False, True, True, True)
    with pytest.raises(ExportError, match=r"tensorrt 11\.4\.0 finds no usable GPU to build on: CUDA init.* error: 35"):
        build(package, tmp_path / "toy.onnx", tmp_path / "toy.plan", PROFILES, AMPERE, print)


def told(inspector: str, listed: str, loads: bool = True) -> tuple[list[str], str]:
    """The types of the layers and who told them, of an engine that a machine with a GPU loads."""
    asked = SimpleNamespace(get_engine_information=lambda format_: inspector)
    engine = SimpleNamespace(create_engine_inspector=lambda: asked) if loads else None
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engine)
    trt = SimpleNamespace(Runtime=lambda log: runtime, LayerInformationFormat=SimpleNamespace(JSON="json"))
    layers, source = building._read_back(trt, SimpleNamespace(layers=lambda: listed), b"plan", {"conv": "fp16"})
    return [layer.type for layer in layers], source


def test_a_loaded_engine_is_asked_first_and_the_builder_where_it_names_nothing() -> None:
    layer = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{"Datatype": "Half"}], "Outputs": []}
    named = json.dumps({"Layers": [layer | {"Metadata": "[ONNX Layer: conv]"}]})
    listed = "Layers:\nName: conv, LayerType: gemm, Inputs: [ { Datatype: Float }], Metadata: [ONNX Layer: conv]\n\nI/O"
    assert told(named, "") == told(named, listed) == (["fp16"], "engine")
    assert told(json.dumps({"Layers": [layer]}), listed) == (["fp32"], "builder")
    assert told("", listed, loads=False) == (["fp32"], "builder")
    with pytest.raises(ExportError, match="its precision cannot be proven; build it on a machine with the GPU"):
        told("", "", loads=False)


def test_tensorrt_is_told_which_other_gpus_may_run_the_engine(rtx: Package) -> None:
    """The full package's way through the configuration, in the words of the bindings that are here."""
    full = Package("tensorrt", "11.4.0", rtx.trt, False, True, True, True)
    seen: dict[str, Any] = {}
    config = SimpleNamespace(
        clear_flag=lambda flag: seen.update(cleared=flag),
        set_flag=lambda flag: seen.setdefault("set", []).append(flag),
        set_memory_pool_limit=lambda pool, size: seen.update(limit=(pool, size)),
    )
    options = Options(
        compute_capabilities=["8.9"], hardware="ampere_plus", version_compatible=True, workspace_mb=512, level=5
    )
    assert building._configure(full, SimpleNamespace(create_builder_config=lambda: config), options) is config
    assert config.hardware_compatibility_level == rtx.trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.builder_optimization_level == 5
    assert not hasattr(config, "num_compute_capabilities")
    flags = rtx.trt.BuilderFlag
    assert seen["cleared"] == flags.TF32
    assert seen["set"] == [flags.VERSION_COMPATIBLE, flags.EXCLUDE_LEAN_RUNTIME]
    assert seen["limit"] == (rtx.trt.MemoryPoolType.WORKSPACE, 512 << 20)


class _Refusing:
    """A configuration whose cache belongs to another GPU."""

    def create_timing_cache(self, data: bytes) -> object:
        return object()

    def set_timing_cache(self, cache: object, ignore_mismatch: bool) -> bool:
        return ignore_mismatch


def test_a_timing_cache_of_another_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="was written by another TensorRT or for another GPU; give another file"):
        building._load_timing_cache(_Refusing(), tmp_path / "kernels.cache")


def test_a_build_in_a_process_of_its_own_tells_the_same(
    rtx: Package, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine, memory = build_apart(rtx, write_toy(tmp_path / "toy.onnx"), tmp_path / "toy.plan", PROFILES, AMPERE)
    assert (tmp_path / "toy.plan").stat().st_size == engine.plan_bytes
    assert Counter(products_found(engine.layers, engine.asked).values()) == {"fp32": 3}
    assert 50 < memory < 2000
    with pytest.raises(Refused) as refused:
        build_apart(rtx, suppressing(tmp_path / "nms.onnx"), tmp_path / "nms.plan", PROFILES, AMPERE)
    assert "no runners that implement it" in refused.value.reason
    assert not (tmp_path / "nms.plan").exists()


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("kill -SEGV $$", "died of SIGSEGV"),
        ("kill -KILL $$", "probably out of memory; lower --max-batch"),
        ("exit 3", "ended with 3"),
    ],
)
def test_a_compiler_that_dies_is_told_in_a_sentence(
    ending: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "python"
    dying.write_text(f"#!/bin/sh\n{ending}\n")
    dying.chmod(0o755)
    monkeypatch.setattr("export.tensorrt.worker.sys.executable", str(dying))
    package = Package("tensorrt-rtx", "1.7.1.116", None, True, False, False, False)
    with pytest.raises(ExportError, match=words):
        build_apart(package, tmp_path / "toy.onnx", tmp_path / "toy.plan", PROFILES, AMPERE)


def test_long_phases_say_how_far_they_are(rtx: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("export.tensorrt.listening.time.monotonic", lambda: now[0])
    said: list[str] = []
    monitor = monitor_of(rtx.trt, said.append)
    monitor.phase_start("Building engine", None, 6)
    monitor.phase_start("Timing graph nodes", "Building engine", 50)
    for step in range(4):
        now[0] += 2.0
        assert monitor.step_complete("Timing graph nodes", step) is True
    monitor.phase_finish("Timing graph nodes")
    monitor.phase_start("Quick", "Building engine", 1)
    monitor.phase_finish("Quick")
    monitor.phase_finish("Building engine")
    assert said == ["Timing graph nodes: 2 of 50", "Timing graph nodes: 8.0 s", "Building engine: 8.0 s"]
