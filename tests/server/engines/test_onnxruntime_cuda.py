"""The ONNX Runtime runner with the real ONNX Runtime: its CPU provider, bound to a device of plain memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from server.engines import Engine, load_engine
from server.engines.onnxruntime_cuda import KEPT_SHAPES, Largest, OnnxRuntimeCuda, told
from server.engines.provider import CUDA, Provider
from server.errors import DeviceFault, DeviceFull, NoEngine, ShapeRefused, UnsupportedModelFile
from tests.server.engines.memory import MemoryDevice

HERE = Provider("CPUExecutionProvider", "cpu")
LARGEST = Largest(images=4, pixels=4 * 64 * 64)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images -> the mean of its colours, and the sums of its rows; both sizes depend on the input's."""
    float_, uint8 = TensorProto.FLOAT, TensorProto.UINT8
    axes = {"colours": [3], "row": [2, 3]}
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=float_),
        helper.make_node("ReduceMean", ["pixels", "colours"], ["grey"], keepdims=0),
        helper.make_node("ReduceSum", ["pixels", "row"], ["rows"], keepdims=0),
    ]
    constants = [helper.make_tensor(name, TensorProto.INT64, [len(value)], value) for name, value in axes.items()]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("images", uint8, ["B", "h", "w", 3])],
            [
                helper.make_tensor_value_info("grey", float_, ["B", "h", "w"]),
                helper.make_tensor_value_info("rows", float_, ["B", "h"]),
            ],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(model, path)
    return path


def pictures(batch: int, height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    return {"images": images, "sizes": np.tile(np.array([height, width], np.int32), (batch, 1))}


def check(outputs: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> None:
    images = inputs["images"].astype(np.float64)
    np.testing.assert_allclose(outputs["grey"], images.mean(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(outputs["rows"], images.sum(axis=(2, 3)), rtol=1e-5)


def test_answers_are_right_stay_right_and_are_learned_once_for_each_shape(graph: Path) -> None:
    device = MemoryDevice()
    engine = OnnxRuntimeCuda(graph, device, LARGEST, provider=HERE)
    shapes = [(1, 8, 8), (4, 64, 64), (1, 8, 8), (2, 5, 31), (4, 64, 64), (1, 1, 1)] * 2
    asked = [pictures(*shape, seed=number) for number, shape in enumerate(shapes)]
    answers = [engine.run(inputs) for inputs in asked]
    for inputs, outputs in zip(asked, answers, strict=True):
        check(outputs, inputs)
    assert len(engine._shapes) == 4
    taken = device.calls["allocate"]
    for inputs in asked:
        check(engine.run_alone(inputs), inputs)
    assert device.calls["allocate"] - taken <= 2  # the other lane's block, once it has met the largest shape
    engine.close()
    assert device.empty


def test_the_shapes_it_remembers_are_bounded(graph: Path) -> None:
    engine = OnnxRuntimeCuda(graph, MemoryDevice(), LARGEST, provider=HERE)
    for width in range(1, KEPT_SHAPES + 10):
        check(engine.run(pictures(1, 2, width)), pictures(1, 2, width))
    assert len(engine._shapes) == KEPT_SHAPES


def test_runs_of_several_threads_do_not_mix(graph: Path) -> None:
    engine = OnnxRuntimeCuda(graph, MemoryDevice(), LARGEST, provider=HERE)
    barrier = threading.Barrier(2, timeout=10)

    def ask(seed: int) -> None:
        barrier.wait()
        for turn in range(30):
            inputs = pictures(1 + turn % 4, 16, 8 + turn % 5, seed + turn)
            check(engine.run(inputs), inputs)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, (0, 100)))


def test_a_recorded_shape_keeps_its_memory_and_others_share_theirs(graph: Path) -> None:
    """What a CUDA graph needs of us: the same addresses at every run of its shape. Recording itself needs a GPU."""
    device = MemoryDevice()
    engine = OnnxRuntimeCuda(graph, device, LARGEST, provider=HERE, graphs=2, slots=1)
    lane = engine._lanes._all[0]
    for _ in range(2):
        for seed, shape in enumerate([(1, 8, 8), (2, 8, 8), (1, 8, 9), (4, 64, 64)]):
            inputs = pictures(*shape, seed=seed)
            check(engine.run(inputs), inputs)
    (one, first), (two, second) = lane.graphs.values()
    assert list(lane.graphs) == [(1, 8, 8, 3), (2, 8, 8, 3)]
    assert (one, two) == ("1", "2")
    assert len({first.address, second.address, lane.outputs.address}) == 3
    engine.close()
    assert device.empty


@pytest.mark.parametrize("shape", [(5, 8, 8), (4, 64, 65)])
def test_a_larger_run_than_it_was_opened_for_is_refused_before_the_device_sees_it(
    graph: Path, shape: tuple[int, int, int]
) -> None:
    device = MemoryDevice()
    engine = OnnxRuntimeCuda(graph, device, LARGEST, provider=HERE)
    before = dict(device.calls)
    with pytest.raises(ShapeRefused, match="more than the 4 images and 16384 pixels"):
        engine.run(pictures(*shape))
    assert dict(device.calls) == before


def test_the_nuclei_model_answers_as_on_the_cpu(root: Path) -> None:
    path = root / "bundles/nuclei/1/model.onnx"
    plain: Engine = load_engine(path, 1)
    device = MemoryDevice()
    engine = OnnxRuntimeCuda(path, device, Largest(2, 2 * 96 * 96), provider=HERE)
    for seed in range(2):  # learned, then bound
        inputs = pictures(2, 80, 96, seed)
        wanted, found = plain.run(inputs), engine.run(inputs)
        assert set(found) == set(wanted)
        for name, tensor in wanted.items():
            np.testing.assert_allclose(found[name], tensor, atol=1e-4)
    engine.close()
    plain.close()


def test_without_the_provider_it_says_what_to_install(graph: Path) -> None:
    with pytest.raises(NoEngine, match=r"no CUDAExecutionProvider: install requirements/gpu\.txt"):
        OnnxRuntimeCuda(graph, MemoryDevice(), LARGEST, provider=CUDA)


def test_another_provider_than_the_wanted_one_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA.name])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(NoEngine, match="wanted CUDAExecutionProvider, ONNX Runtime gave CPUExecutionProvider"),
    ):
        OnnxRuntimeCuda(graph, MemoryDevice(), LARGEST, provider=CUDA)


def test_a_file_that_is_no_graph_and_an_output_of_another_type_are_refused(graph: Path, tmp_path: Path) -> None:
    bad = tmp_path / "model.onnx"
    bad.write_bytes(b"no graph")
    with pytest.raises(UnsupportedModelFile, match="cannot open"):
        OnnxRuntimeCuda(bad, MemoryDevice(), LARGEST, provider=HERE)
    model = onnx.load(graph)
    model.graph.node.append(helper.make_node("Cast", ["rows"], ["wide"], to=TensorProto.DOUBLE))
    model.graph.output.append(helper.make_tensor_value_info("wide", TensorProto.DOUBLE, ["B", "h"]))
    onnx.save(model, bad)
    with pytest.raises(UnsupportedModelFile, match=r"output 'wide' is tensor\(double\)"):
        OnnxRuntimeCuda(bad, MemoryDevice(), LARGEST, provider=HERE)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x", DeviceFault, "failure 700"),
        ("CUDNN failure 5003: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0", DeviceFault, "CUDNN failure 5003"),
        (
            "CUDA failure 209: no kernel image is available ; GPU=0",
            NoEngine,
            "this GPU with this driver: CUDA failure 209",
        ),
        ("CUDA failure 35: CUDA driver version is insufficient ; GPU=-1", NoEngine, "CUDA failure 35"),
        ("CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR", DeviceFault, "CUBLAS failure 14"),
        ("CUDA error executing cudaEventRecord(event)", DeviceFault, "CUDA error"),
        ("CUDA failure 2: out of memory ; GPU=0", DeviceFull, "no memory left"),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", DeviceFull, "no memory left"),
        ("CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED ; GPU=0 ; expr=x", RuntimeError, "NOT_SUPPORTED"),
        ("CUDNN_FE failure 8: GRAPH_EXECUTION_PLAN_CREATION_FAILED ; GPU=0", DeviceFault, "CUDNN_FE failure 8"),
        ("Failed to allocate memory for requested buffer of size 99", DeviceFull, "no memory left"),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input", RuntimeError, "INVALID"),
    ],
)
def test_what_onnx_runtime_raises_is_told_apart(text: str, kind: type[Exception], words: str) -> None:
    meaning = told(RuntimeError(text))
    assert type(meaning) is kind
    assert words in str(meaning)
    assert kind is RuntimeError or "GPU=" not in str(meaning)


@pytest.mark.parametrize(("runs", "kind"), [(0, NoEngine), (1, DeviceFault)])
def test_a_gpu_that_does_not_suit_is_found_at_the_first_run_and_later_is_a_fault(
    graph: Path, monkeypatch: pytest.MonkeyPatch, runs: int, kind: type[Exception]
) -> None:
    engine = OnnxRuntimeCuda(graph, MemoryDevice(), LARGEST, provider=HERE)
    for _ in range(runs):
        engine.run(pictures(1, 8, 8))

    def fail(*args: object) -> None:
        raise RuntimeError("CUDA failure 46: all CUDA-capable devices are busy or unavailable ; GPU=0")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", fail)
    with pytest.raises(kind, match=r"CUDA failure 46$"):
        engine.run(pictures(1, 8, 8))


def test_a_run_that_onnx_runtime_refuses_is_no_fault_of_the_device(graph: Path) -> None:
    engine = OnnxRuntimeCuda(graph, MemoryDevice(), LARGEST, provider=HERE)
    with pytest.raises(Exception, match="invalid dimensions") as caught:
        engine.run({"images": np.zeros((1, 8, 8, 4), np.uint8)})
    assert not isinstance(caught.value, DeviceFault | DeviceFull)
    check(engine.run(pictures(1, 8, 8)), pictures(1, 8, 8))


def test_a_device_that_fails_is_told_and_still_closes(graph: Path) -> None:
    device = MemoryDevice()
    engine = OnnxRuntimeCuda(graph, device, LARGEST, provider=HERE)
    engine.run(pictures(1, 8, 8))
    device.failing = "synchronise"
    with pytest.raises(DeviceFault, match="cudaErrorIllegalAddress"):
        engine.run(pictures(1, 8, 8))
    engine.close()


def test_a_device_that_fails_while_the_graph_is_opened_is_told(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("CUDA failure 999: unknown error ; GPU=0 ; hostname=x")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(DeviceFault, match=r"^ONNX Runtime: CUDA failure 999$"):
        OnnxRuntimeCuda(graph, MemoryDevice(), LARGEST, provider=HERE)


def test_a_device_without_room_says_so_and_keeps_nothing(graph: Path) -> None:
    device = MemoryDevice(room=60_000)
    with pytest.raises(DeviceFull):
        OnnxRuntimeCuda(graph, device, LARGEST, provider=HERE)
    assert device.empty
