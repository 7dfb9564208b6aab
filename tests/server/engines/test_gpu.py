"""On a real GPU: what the tests beside this one prove on a device of plain memory, and what only hardware can say.

`scripts/gpu_check.sh` runs these. Without a GPU they are skipped, or fail where `MASKSERVE_GPU=required`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from server.agreement import off
from server.cores import usable_cores
from server.engines import Engine, load_engine
from server.engines.choice import Wanted, candidates, here
from server.engines.device import CudaDevice, open_device
from server.engines.onnxruntime_cuda import Largest, OnnxRuntimeCuda
from server.errors import DeviceFull, NoEngine
from server.http.app import create_app
from server.manifest import Bundle, read_bundle
from server.settings import Settings
from tests.conftest import ROOT

pytestmark = pytest.mark.gpu

BUNDLES = sorted(path.parent for path in (ROOT / "bundles").glob("*/*/manifest.json"))
SIDE = 256  # pixels of the pictures here
TOLERANCE = 0.01  # where a bundle does not say


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    try:
        return open_device()
    except NoEngine as error:
        if os.environ.get("MASKSERVE_GPU") == "required":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return read_bundle(request.param)


@pytest.fixture(scope="module")
def engine(device: CudaDevice, bundle: Bundle) -> Iterator[OnnxRuntimeCuda]:
    most = bundle.manifest.max_batch
    opened = OnnxRuntimeCuda(bundle.folder / "model.onnx", device, Largest(most, most * 1024 * 1024))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def cpu(bundle: Bundle) -> Iterator[Engine]:
    opened = load_engine(bundle.folder / "model.onnx", usable_cores())
    yield opened
    opened.close()


def pictures(bundle: Bundle, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    height, width = bundle.manifest.input.frame((SIDE, SIDE)).input_size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (batch, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    images = np.ascontiguousarray(coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width])
    return {"images": images, "sizes": np.tile(np.array([height, width], np.int32), (batch, 1))}


def apart(
    bundle: Bundle, found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], precision: str | None = None
) -> float:
    return off(found, wanted, bundle.manifest.masks.legend, precision or bundle.manifest.precision)[0]


def tolerance(bundle: Bundle, name: str) -> float:
    return bundle.manifest.golden.tolerance.get(f"{name}/{bundle.manifest.precision}", TOLERANCE)


def test_bytes_go_to_the_device_and_back(device: CudaDevice) -> None:
    size = 10_000_001
    address, there, back = device.allocate(size), device.pin(size), device.pin(size)
    stream = device.open_stream()
    there[:] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    device.copy_in(address, there, stream)
    device.copy_out(back, address, stream)
    device.synchronise(stream)
    np.testing.assert_array_equal(back, there)
    device.close_stream(stream)
    device.free(address)
    device.unpin(there)
    device.unpin(back)
    assert device.properties.compute_capability.count(".") == 1
    assert device.properties.memory > 1e9


def test_too_much_memory_is_told_and_breaks_nothing(device: CudaDevice) -> None:
    with pytest.raises(DeviceFull):
        device.allocate(1 << 50)
    device.free(device.allocate(1024))


FAULT = """
import numpy as np
from server.engines.device import open_device
from server.errors import DeviceFault
device = open_device()
stream, host = device.open_stream(), device.pin(1024)
try:
    device.copy_out(host, 0xdead0000, stream)
    device.synchronise(stream)
except DeviceFault as fault:
    print("fault", fault)
"""


def test_a_wrong_address_is_a_fault(device: CudaDevice) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULT], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("fault cudaMemcpyAsync: cudaError"), done.stdout + done.stderr


def test_the_gpu_answers_as_the_cpu_at_every_batch_size(bundle: Bundle, engine: OnnxRuntimeCuda, cpu: Engine) -> None:
    for batch in sorted({1, 2, 3, bundle.manifest.max_batch}):
        inputs = pictures(bundle, batch, seed=batch)
        wanted = cpu.run_alone(inputs)
        for _ in range(2):  # learned, then bound
            assert apart(bundle, engine.run(inputs), wanted) <= tolerance(bundle, engine.name), batch


def test_runs_of_two_threads_do_not_mix(bundle: Bundle, engine: OnnxRuntimeCuda) -> None:
    asked = [pictures(bundle, 1 + seed % 2, seed) for seed in range(12)]
    wanted = [engine.run(inputs) for inputs in asked]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(engine.run, asked))
    for one, other in zip(found, wanted, strict=True):
        assert apart(bundle, one, other) <= tolerance(bundle, engine.name)


def test_a_batch_is_quicker_than_its_images_one_by_one(bundle: Bundle, engine: OnnxRuntimeCuda) -> None:
    def seconds_an_image(batch: int) -> float:
        inputs = pictures(bundle, batch)
        engine.run(inputs)
        turns = []
        for _ in range(10):
            began = time.perf_counter()
            engine.run(inputs)
            turns.append(time.perf_counter() - began)
        return float(np.median(turns)) / batch

    most = bundle.manifest.max_batch
    if most < 4:
        pytest.skip(f"its batches are of {most}")
    assert seconds_an_image(most) < 0.9 * seconds_an_image(1)


def test_a_recorded_run_answers_like_any_other(device: CudaDevice, bundle: Bundle, engine: OnnxRuntimeCuda) -> None:
    recorded = OnnxRuntimeCuda(bundle.folder / "model.onnx", device, Largest(2, 2 * 1024 * 1024), graphs=1)
    try:
        for seed in range(6):
            for batch in (1, 2):  # the first shape is recorded, the second is not
                inputs = pictures(bundle, batch, seed)
                assert apart(bundle, recorded.run(inputs), engine.run(inputs)) <= tolerance(bundle, engine.name)
    finally:
        recorded.close()


def test_a_plan_that_fits_answers_as_the_cpu(bundle: Bundle, cpu: Engine, device: CudaDevice) -> None:
    try:
        (candidate,), _ = candidates(bundle, Wanted(1, "tensorrt"), here())
        opened = candidate.open()
    except NoEngine as error:
        pytest.skip(str(error))
    name = f"{opened.engine.name}/{opened.precision}"
    for batch in range(1, opened.max_batch + 1):
        inputs = pictures(bundle, batch, seed=batch)
        found = opened.engine.run(inputs)
        assert (
            apart(bundle, found, cpu.run_alone(inputs), opened.precision) <= bundle.manifest.golden.tolerance[name]
        ), batch
    opened.engine.close()


def test_the_server_serves_on_the_gpu_and_says_so(device: CudaDevice, tmp_path: Path) -> None:
    folder = tmp_path / "nuclei/1"
    shutil.copytree(ROOT / "bundles/nuclei/1", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["golden"]["tolerance"].setdefault("onnxruntime-cuda/fp32", TOLERANCE)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    settings = Settings.model_validate({"bundles": tmp_path, "engine": "cuda", "workers": 1})
    picture = (ROOT / "docs/samples/nuclei.png").read_bytes()
    with TestClient(create_app(settings)) as client:
        until = time.monotonic() + 120
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < until, client.get("/readyz").text
            time.sleep(0.1)
        (model,) = client.get("/v1/models").json()["models"]
        assert (model["engine"], model["engine_note"]) == ("onnxruntime-cuda", "")
        assert len(client.post("/v1/segment", content=picture).json()["instances"]) > 3
