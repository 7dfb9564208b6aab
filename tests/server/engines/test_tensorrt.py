"""The TensorRT runner on a device of plain memory; and its words held against the real bindings."""

from __future__ import annotations

import ast
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import server.engines.tensorrt as runner
from server.engines.tensorrt import TensorRT
from server.errors import DeviceFault, DeviceFull, NoEngine, ShapeRefused
from tests.conftest import ROOT
from tests.server.engines import fake_trt
from tests.server.engines.memory import MemoryDevice

NARROW = {"images": [[1, 8, 8, 3], [1, 8, 8, 3], [2, 16, 16, 3]]}
WIDE = {"images": [[1, 8, 8, 3], [4, 16, 16, 3], [4, 32, 32, 3]]}
WITH_SIZES = {"images": WIDE["images"], "sizes": [[1, 2], [4, 2], [4, 2]]}


def opened(*profiles: dict[str, list[list[int]]], **more: Any) -> tuple[TensorRT, MemoryDevice, fake_trt.Bindings]:
    device = MemoryDevice()
    trt = fake_trt.Bindings(device)
    return TensorRT(trt, fake_trt.plan(*(profiles or (NARROW, WIDE)), **more), device), device, trt


def pictures(batch: int, height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    return {"images": images, "sizes": np.tile(np.array([height, width], np.int32), (batch, 1))}


def check(outputs: dict[str, np.ndarray], inputs: dict[str, np.ndarray], sizes: bool = False) -> None:
    images = inputs["images"].astype(np.int64)
    np.testing.assert_array_equal(outputs["sums"], images.sum(axis=(1, 2, 3)))
    more = inputs["sizes"].sum(axis=1)[:, None, None] if sizes else 0
    np.testing.assert_array_equal(outputs["doubled"], images.sum(axis=-1) * 2 + more)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(8, 32), st.integers(8, 32)), min_size=1, max_size=6))
def test_every_batch_a_profile_holds_gets_its_own_answer(shapes: list[tuple[int, int, int]]) -> None:
    engine, device, _ = opened(WITH_SIZES, sizes=True)
    asked = [pictures(*shape, seed=number) for number, shape in enumerate(shapes)]
    answers = [engine.run(inputs) for inputs in asked]
    for inputs, outputs in zip(asked, answers, strict=True):  # after all of them: none was written over
        check(outputs, inputs, sizes=True)
    engine.close()
    assert device.empty


def test_the_narrowest_profile_that_holds_a_batch_is_chosen() -> None:
    engine, _, trt = opened(WIDE, NARROW)
    for shape in ((2, 16, 16), (3, 16, 16), (1, 32, 8), (1, 8, 8)):
        engine.run(pictures(*shape))
    assert [(profile, shape[:3]) for profile, shape, _ in trt.engines[0].ran] == [
        (1, (2, 16, 16)),
        (0, (3, 16, 16)),
        (0, (1, 32, 8)),
        (1, (1, 8, 8)),
    ]


@pytest.mark.parametrize("shape", [(5, 8, 8), (1, 7, 8), (1, 8, 33)])
def test_a_batch_outside_all_profiles_is_refused_before_the_device_sees_it(shape: tuple[int, int, int]) -> None:
    engine, device, _ = opened()
    before = dict(device.calls)
    with pytest.raises(ShapeRefused, match=r"images \d+x\d+x\d+x3: no profile .* images 1x8x8x3 to 2x16x16x3; "):
        engine.run(pictures(*shape))
    assert dict(device.calls) == before
    check(engine.run_alone(pictures(1, 8, 8)), pictures(1, 8, 8))


def test_an_input_of_another_type_is_refused() -> None:
    engine, _, _ = opened()
    with pytest.raises(ShapeRefused, match="'images' should be uint8, got float32"):
        engine.run({"images": np.zeros((1, 8, 8, 3), np.float32)})


def test_a_run_takes_no_memory() -> None:
    engine, device, _ = opened()
    taken = device.calls["allocate"], device.calls["pin"]
    for batch in (1, 4, 2):
        engine.run(pictures(batch, 16, 16))
    assert (device.calls["allocate"], device.calls["pin"]) == taken


def test_runs_of_several_threads_have_a_stream_each_and_do_not_mix() -> None:
    engine, _, trt = opened()
    barrier = threading.Barrier(2, timeout=10)

    def ask(seed: int) -> None:
        barrier.wait()
        for turn in range(20):
            inputs = pictures(1 + turn % 4, 16, 8 + turn, seed + turn)
            check(engine.run(inputs), inputs)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, (0, 100)))
    assert 1 <= len({stream for _, _, stream in trt.engines[0].ran}) <= engine.slots == 2


def test_code_for_the_host_is_not_allowed() -> None:
    _, _, trt = opened()
    assert [runtime.engine_host_code_allowed for runtime in trt.runtimes] == [False]


def test_a_plan_that_tensorrt_does_not_open_is_refused() -> None:
    device = MemoryDevice()
    with pytest.raises(NoEngine, match=r"tensorrt 11.4.0.106 does not open model.plan; its own line .* build it again"):
        TensorRT(fake_trt.Bindings(device), b"\x00 no plan", device)
    assert device.empty


def test_a_tensorrt_that_does_not_start_is_refused() -> None:
    device = MemoryDevice()
    trt = fake_trt.Bindings(device)

    def nothing(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Runtime = nothing  # type: ignore[assignment]
    with pytest.raises(NoEngine, match=r"tensorrt 11\.4\.0\.106 does not start with this GPU and driver"):
        TensorRT(trt, fake_trt.plan(WIDE), device)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"inputs": ["pixels"]}, r"takes \['pixels'\], expected images"),
        ({"lacking": ["anchors"]}, r"wants more than images and sizes: \['anchors'\]"),
        ({"shapes": {"doubled": [-1, 4]}}, "'doubled' of model.plan has a size that depends on the picture, -1x4"),
    ],
)
def test_a_plan_that_is_none_of_ours_is_refused(more: dict[str, Any], words: str) -> None:
    profile = dict.fromkeys(("images", "pixels"), WIDE["images"])
    with pytest.raises(NoEngine, match=words):
        opened(profile, **more)


def test_a_device_without_room_says_so_and_keeps_nothing() -> None:
    device = MemoryDevice(room=30_000)
    with pytest.raises(DeviceFull):
        TensorRT(fake_trt.Bindings(device), fake_trt.plan(WIDE), device)
    assert device.empty
    with pytest.raises(DeviceFull, match="tensorrt: create_execution_context: the device has no memory left"):
        opened(WIDE, no_context=True)


@pytest.mark.parametrize("method", ["copy_in", "copy_out", "synchronise"])
def test_a_device_that_fails_is_told_and_still_closes(method: str) -> None:
    engine, device, _ = opened()
    engine.run(pictures(1, 8, 8))
    device.failing = method
    with pytest.raises(DeviceFault, match=rf"{method}: cudaErrorIllegalAddress \(700\)"):
        engine.run(pictures(1, 8, 8))
    engine.close()


def test_a_run_that_tensorrt_refuses_is_a_fault() -> None:
    engine, _, trt = opened()
    trt.engines[0].refusing = True
    with pytest.raises(DeviceFault, match="TensorRT would not run"):
        engine.run(pictures(1, 8, 8))


KINDS = {"trt": "", "_runtime": "Runtime", "_plan": "ICudaEngine", "context": "IExecutionContext"}


def spoken() -> set[str]:
    """Every name of the bindings that the runner uses, as `Class.name`; a name of the module alone."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "server/engines/tensorrt.py").read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            if owner in KINDS:
                found.add(f"{KINDS[owner]}.{node.attr}".lstrip("."))
            elif owner in ("Logger", "TensorIOMode"):
                found.add(f"{owner}.{node.attr}")
    return found


def test_every_name_the_runner_uses_is_there_in_the_real_bindings_and_in_the_fake_ones() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    names = spoken()
    assert {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3", "TensorIOMode.INPUT"} <= names
    assert len(names) > 18
    for name in names - {"ICudaEngine", "__version__"}:
        owner, _, attribute = name.rpartition(".")
        assert hasattr(getattr(real, owner) if owner else real, attribute), name
        if owner in ("IExecutionContext", "Logger", "TensorIOMode"):
            assert hasattr(getattr(fake_trt, owner), attribute), name


def test_the_real_bindings_take_what_the_runner_gives_them() -> None:
    """As far as that goes without a driver: the runtime is made, and says no to what is no plan."""
    real = pytest.importorskip("tensorrt_rtx")
    assert [np.dtype(real.nptype(getattr(real.DataType, name))) for name in ("UINT8", "INT32", "FLOAT")] == [
        np.uint8,
        np.int32,
        np.float32,
    ]
    arguments = {
        "set_tensor_address": "name: str, memory: typing.SupportsInt",
        "execute_async_v3": "stream_handle: typing.SupportsInt",
        "set_optimization_profile_async": "profile_index: typing.SupportsInt, stream_handle: typing.SupportsInt",
    }
    for method, words in arguments.items():
        assert f"{words})" in getattr(real.IExecutionContext, method).__doc__, method
    assert "-> bool" in real.IExecutionContext.set_input_shape.__doc__
    assert "get_tensor_profile_shape(self" in real.ICudaEngine.get_tensor_profile_shape.__doc__
    assert runner.SLOTS == 2


def test_the_real_runtime_is_made_and_says_no_to_what_is_no_plan() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(NoEngine, match=f"tensorrt-rtx {real.__version__} does not open model.plan"):
        TensorRT(real, b"no plan", MemoryDevice(), "tensorrt-rtx")
