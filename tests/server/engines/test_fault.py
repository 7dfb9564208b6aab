"""A device that fails: the model is latched not ready, its requests get 503, the process ends and another begins."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from server.engines.choice import Wanted
from server.errors import DeviceFault
from server.http.app import create_app
from server.loading import Loaded
from server.settings import Settings
from tests.server.fakes import FakeEngine, FakeLoader
from tests.server.processes.behaving import FAULT
from tests.server.processes.running import running
from tests.server.processes.running import wait_until as wait_long
from tests.server.test_http import assert_problem, metric, png, wait_until

WHY = "cudaStreamSynchronize: cudaErrorIllegalAddress (700)"


class Faulty(FakeEngine):
    """Loses its device at a picture whose first pixel is of grey 31; then all is lost."""

    lost = False
    batches: tuple[int, ...] = ()  # sizes of those it was asked to run

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.batches += (len(inputs["images"]),)
        self.lost = self.lost or bool((np.asarray(inputs["images"])[:, 0, 0, 0] == FAULT).any())
        if self.lost:
            raise DeviceFault(WHY)
        return super().run(inputs)


def application(tiny_bundle: Path, loader: Any) -> Any:
    return create_app(Settings.model_validate({"bundles": tiny_bundle.parent.parent}), loader)


def test_a_fault_latches_not_ready_and_requests_get_503(tiny_bundle: Path) -> None:
    loader = FakeLoader()
    loader.engine = engine = Faulty()
    app = application(tiny_bundle, loader)
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/segment", content=png(grey=engine.poison)).status_code == 500  # a picture's own fault
        assert client.post("/v1/segment", content=png()).status_code == 200  # latches nothing
        assert client.get("/livez").status_code == 200
        problem = client.post("/v1/segment", content=png(grey=FAULT))
        assert_problem(problem, 503, "not_ready")
        assert "cuda" not in problem.text
        wait_until(lambda: client.get("/readyz").status_code == 503)
        told = client.get("/readyz").json()["models"]["tiny/1"]
        assert told == {"state": "failed", "reason": f"the device failed: {WHY}"}
        runs = engine.batches
        assert_problem(client.post("/v1/segment", content=png()), 503, "not_ready")
        assert engine.batches == runs  # nobody asks it again
        assert metric(client, "seg_model_ready") == 0
        assert client.get("/livez").status_code == 503  # so that whoever watches starts it again
        assert app.state.backend.broken  # and it ends by itself
    assert not engine.closed  # nothing more is asked of it


def test_everybody_in_a_batch_gets_503_and_the_batch_is_not_halved(tiny_bundle: Path) -> None:
    loader = FakeLoader()
    loader.engine = engine = Faulty()
    with TestClient(application(tiny_bundle, loader), raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        engine.free.clear()
        with ThreadPoolExecutor(2) as callers:
            callers.submit(client.post, "/v1/segment", content=png())
            assert engine.started.wait(10)  # so that the four below wait, and go together
            parts = [("image", ("a.png", png(grey=grey), "image/png")) for grey in (FAULT, 128, 128, 128)]
            four = callers.submit(client.post, "/v1/segment", files=parts)
            wait_until(lambda: metric(client, "seg_queue_depth") == 4)
            engine.free.set()
            assert four.result(10).status_code == 503
        assert engine.batches == (1, 4)


def test_a_fault_while_loading_is_told_and_ends_the_process(tiny_bundle: Path) -> None:
    def load(folder: Path, wanted: Wanted) -> Loaded:
        raise DeviceFault(WHY)

    app = application(tiny_bundle, load)
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/readyz").json()["models"]["tiny/1"]["state"] == "failed")
        assert client.get("/readyz").json()["models"]["tiny/1"]["reason"] == f"the device failed: {WHY}"
        assert app.state.backend.broken


def test_which_engine_and_why_no_better_is_told(tiny_bundle: Path) -> None:
    def load(folder: Path, wanted: Wanted) -> Loaded:
        loaded = FakeLoader()(folder, wanted)
        return Loaded(loaded.bundle, loaded.engine, 1e-9, max_batch=2, precision="fp16", note="not TensorRT: no plan")

    with TestClient(application(tiny_bundle, load)) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        (model,) = client.get("/v1/models").json()["models"]
        assert (model["engine"], model["engine_note"]) == ("fake", "not TensorRT: no plan")
        assert metric(client, "seg_model_info", engine="fake", precision="fp16") == 1
        parts = [("image", ("a.png", png(), "image/png"))] * 6
        assert max(one["batch_size"] for one in client.post("/v1/segment", files=parts).json()["results"]) <= 2


@pytest.mark.slow
def test_an_engine_process_that_loses_its_device_is_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    with running(tiny_bundle.parent.parent, tmp_path, 1) as server:
        assert server.ask(png())[0] == 200
        before = server.children()["engine"]
        status, problem = server.ask(png(grey=FAULT))
        assert (status, problem["code"]) == (503, "not_ready")
        wait_long(lambda: server.children().get("engine", before) != before, what="for another engine process")
        wait_long(server.is_ready, what="for ready again")
        assert server.ask(png())[0] == 200
        assert f"failed: {WHY}; its requests get 503" in server.told()
        assert "engine ended with 1" in server.told()
