"""Which engine serves: by name or not at all; with `auto` the best that proves itself, and never in silence."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.__main__ import main
from server.cores import has_gpu
from server.engines import Engine, choice, load_engine
from server.engines.choice import EngineName, Here, Opened, Wanted, check_start, here
from server.engines.passport import platform_here
from server.engines.provider import Provider
from server.errors import DeviceFault, DeviceFull, NoEngine
from server.loading import load
from tests.server.engines.memory import MemoryDevice

PLAN = b"a plan"
PASSES = Provider("CPUExecutionProvider", "cpu")  # for the one on the GPU


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.fixture
def bundle(root: Path, tmp_path: Path) -> Path:
    """The nuclei model, with tolerances for a GPU."""
    folder = tmp_path / "nuclei/1"
    shutil.copytree(root / "bundles/nuclei/1", folder)
    edit(folder, lambda m: m["golden"]["tolerance"].update({"onnxruntime-cuda/fp32": 0.001, "tensorrt/fp32": 0.001}))
    return folder


@pytest.fixture
def planned(bundle: Path) -> Path:
    """The same with a plan, whose passport fits `gpu`."""
    (bundle / "model.plan").write_bytes(PLAN)
    (bundle / "model.trt.onnx").write_bytes(b"a twin")
    sums = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in ("model.plan", "model.trt.onnx")}
    low, high = {"images": [1, 16, 16, 3]}, {"images": [2, 2048, 2048, 3]}
    passport = {
        "package": "tensorrt",
        "package_version": "11.4.0.106",
        "platform": platform_here(),
        "compute_capabilities": ["9.0"],
        "precision": "fp32",
        "layers": {"fp32": 1},
        "profiles": [{"smallest": low, "best": low, "largest": high}],
        "twin_sha256": sums["model.trt.onnx"],
        "plan_sha256": sums["model.plan"],
        "build": {},
    }
    edit(bundle, lambda m: (m["files"].update(sums), m.update(plan=passport)))
    return bundle


class Renamed:
    """The engine of the CPU under another name."""

    slots = 1

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self.name = engine, name
        self.run, self.run_alone, self.close = engine.run, engine.run_alone, engine.close
        self.give_back = engine.give_back


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Here:
    """A machine with a GPU of plain memory, on which ONNX Runtime's CPU provider passes for the other one."""
    from server.engines import tensorrt

    def runner(trt: Any, plan: bytes, device: MemoryDevice, name: str) -> Engine:
        assert plan == PLAN
        return Renamed(load_engine(trt.path, 1), name)

    monkeypatch.setattr(tensorrt, "TensorRT", runner)
    return Here(MemoryDevice(), provider=PASSES)


def with_tensorrt(gpu: Here, bundle: Path) -> Here:
    trt = SimpleNamespace(__version__="11.4.0.106", path=bundle / "model.onnx")
    return Here(gpu.device, bindings=lambda package: trt, provider=PASSES)


def served(bundle: Path, machine: Here, engine: EngineName = "auto", **more: Any) -> tuple[str, str, int | None]:
    loaded = load(bundle, Wanted(1, engine, **more), lambda: machine)
    loaded.engine.close()
    return loaded.engine.name, loaded.note, loaded.max_batch


def test_this_machine_serves_on_the_cpu_and_says_nothing_of_it(bundle: Path) -> None:
    if here().device is not None:
        pytest.skip("there is a GPU here")
    assert served(bundle, here()) == ("onnxruntime-cpu", "", 8)
    assert served(bundle, here(), "onnxruntime", max_batch=2) == ("onnxruntime-cpu", "", 2)


def test_auto_takes_the_plan_then_the_gpu_then_the_cpu_and_says_why(planned: Path, gpu: Here) -> None:
    assert served(planned, with_tensorrt(gpu, planned)) == ("tensorrt", "", 2)
    name, note, batch = served(planned, gpu)
    assert (name, batch) == ("onnxruntime-cuda", 8)
    assert note == (
        "not TensorRT: model.plan is for tensorrt 11.4.0.106, which is not installed here; see docs/tensorrt.md"
    )
    edit(planned, lambda m: m["golden"]["tolerance"].pop("onnxruntime-cuda/fp32"))
    name, note, _ = served(planned, gpu)
    assert name == "onnxruntime-cpu"
    assert "; not ONNX Runtime on the GPU: the bundle does not say how closely 'onnxruntime-cuda/fp32' must" in note
    assert note.endswith("export it again")
    name, note, _ = served(planned, Here(None, "no CUDA device: the driver counts none"))
    assert (name, note) == ("onnxruntime-cpu", "model.plan is not used, no CUDA device: the driver counts none")


def test_batches_grow_from_one_where_memory_is_taken_run_by_run(planned: Path, gpu: Here) -> None:
    tried = {}
    for machine in (with_tensorrt(gpu, planned), gpu, Here(None, "no CUDA device")):
        loaded = load(planned, Wanted(1), lambda machine=machine: machine)  # type: ignore[misc]
        loaded.engine.close()
        tried[loaded.engine.name] = loaded.tried
    assert tried == {"tensorrt": 2, "onnxruntime-cuda": 8, "onnxruntime-cpu": 1}


def test_a_damaged_plan_does_not_keep_the_onnx_file_from_being_served(planned: Path, gpu: Here) -> None:
    (planned / "model.plan").write_bytes(b"another")
    name, note, _ = served(planned, with_tensorrt(gpu, planned))
    assert name == "onnxruntime-cuda"
    assert "model.plan has sha256" in note
    with pytest.raises(NoEngine, match="its passport says"):
        served(planned, with_tensorrt(gpu, planned), "tensorrt")


def test_an_engine_that_answers_wrongly_is_passed_over_and_no_path_is_told(bundle: Path, gpu: Here) -> None:
    edit(bundle, lambda m: m["golden"]["tolerance"].update({"onnxruntime-cuda/fp32": 1e-12}))
    name, note, _ = served(bundle, gpu)
    assert (name, note) == ("onnxruntime-cpu", "not ONNX Runtime on the GPU: GoldenMismatch, see the log")


def test_what_is_asked_for_by_name_is_served_or_refused(bundle: Path, planned: Path, gpu: Here) -> None:
    assert served(bundle, gpu, "cuda")[0] == "onnxruntime-cuda"
    assert served(bundle, gpu, "cuda", cuda_graphs=2)[0] == "onnxruntime-cuda"
    with pytest.raises(NoEngine, match="not installed here"):
        served(planned, gpu, "tensorrt")
    edit(planned, lambda m: m.update(plan=None))
    with pytest.raises(NoEngine, match=r"has no model\.plan; 'python -m export plan' builds one"):
        served(planned, with_tensorrt(gpu, planned), "tensorrt")
    with pytest.raises(NoEngine, match="no CUDA device: gone"):
        served(bundle, Here(None, "no CUDA device: gone", provider=PASSES), "cuda")


def test_a_gpu_without_room_is_passed_over_and_one_that_fails_is_not(bundle: Path, gpu: Here) -> None:
    name, note, _ = served(bundle, Here(MemoryDevice(room=1000), provider=PASSES))
    assert name == "onnxruntime-cpu"
    assert "no memory left for this; lower --max-batch or --max-batch-megapixels, or serve fewer models" in note
    broken = MemoryDevice()
    broken.failing = "allocate"
    with pytest.raises(DeviceFault):
        served(bundle, Here(broken, provider=PASSES))


def test_an_engine_that_has_no_room_left_to_run_is_passed_over(
    bundle: Path, gpu: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Renamed):
        def __init__(self, engine: Engine, name: str) -> None:
            super().__init__(engine, name)
            self.run = self._refuse  # type: ignore[assignment]

        def _refuse(self, inputs: object) -> None:
            raise DeviceFull("cudaMalloc: no memory left")

    full = Opened(Full(load_engine(bundle / "model.onnx", 1), "onnxruntime-cuda"), "fp32", 8, 8)
    monkeypatch.setattr(choice, "_open_cuda", lambda bundle, wanted, machine: full)
    name, note, _ = served(bundle, gpu)
    assert name == "onnxruntime-cpu"
    assert "it opened, and has no room left to run" in note


def test_a_runtime_that_fails_in_a_way_of_its_own_is_passed_over_by_auto_alone(
    bundle: Path, gpu: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(bundle: object, wanted: object, machine: object) -> Opened:
        raise RuntimeError("Non-zero status code returned while running Conv node, /some/path")

    monkeypatch.setattr(choice, "_open_cuda", fail)
    name, note, _ = served(bundle, gpu)
    assert (name, note) == ("onnxruntime-cpu", "not ONNX Runtime on the GPU: RuntimeError, see the log")
    with pytest.raises(RuntimeError, match="Conv node"):
        served(bundle, gpu, "cuda")


@pytest.mark.parametrize("engine", ["cuda", "tensorrt"])
def test_the_server_does_not_start_on_an_engine_that_is_not_here(
    engine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if has_gpu():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(choice, "_bindings", lambda package: None)
    here.cache_clear()
    monkeypatch.setattr("sys.argv", ["server", "--engine", engine])
    assert main() == 2
    here.cache_clear()
    said = capsys.readouterr().err
    assert said.startswith("cannot start: ")
    assert said.count("\n") == 1
    assert ("install requirements/gpu.txt" if engine == "cuda" else "see docs/tensorrt.md") in said


def test_with_the_package_and_no_device_the_start_is_refused_too() -> None:
    with pytest.raises(NoEngine, match="no CUDA device: gone"):
        check_start("tensorrt", lambda: Here(None, "no CUDA device: gone", bindings=lambda package: object()))
    check_start("auto", lambda: pytest.fail("auto asks nobody"))


@pytest.mark.parametrize("error", ["raise OSError('libnvinfer.so.11: cannot open')", "raise RuntimeError('CUDA 12')"])
def test_a_tensorrt_that_does_not_load_is_as_good_as_none_and_the_log_says_why(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorrt.py").write_text(error)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    assert choice._bindings("tensorrt") is None
    assert "tensorrt is installed, and does not load: " in caplog.text


def test_a_gpu_that_fails_when_it_is_first_looked_at_is_told_in_a_sentence() -> None:
    def broken() -> Here:
        raise DeviceFault("cudaGetDeviceProperties: cudaErrorUnknown (999)")

    with pytest.raises(NoEngine, match=r"^--engine cuda: the GPU failed: cudaGetDeviceProperties: cudaErrorUnknown"):
        check_start("cuda", broken)
