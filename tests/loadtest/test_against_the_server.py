"""The load tester's account against the server's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.loadtest.conftest import LoadTest
from tests.server.processes.running import png, running

ALONE = 5  # requests before the load: what a right answer is, and how long it takes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize(
    ("processes", "engines"), [(0, "each"), (2, "each"), (3, "each"), (2, "shared")]
)  # 0: all in one process
def test_the_metrics_equal_what_the_load_tester_counted(
    loadtest: LoadTest,
    tiny_bundle: Path,
    tmp_path: Path,
    processes: int,
    engines: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_DELAY_S", "0.01")
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.png").write_bytes(png())
    with running(
        tiny_bundle.parent.parent, tmp_path, processes, engines=engines, max_wait_ms=30, max_batch=1
    ) as server:
        tested = loadtest(
            f"http://127.0.0.1:{server.port}", "--rate", 400, "--duration", 3, "--warmup", 0, "--seed", 3,
            "--images", tmp_path / "real",
        )  # fmt: skip
        result = tested.result
        assert (result["unfinished"], result["resent"]) == (0, 0)
        assert set(tested.failures) == {"overloaded"}, "an engine makes 100 a second, and there are three at most"
        for _ in range(2 * max(1, processes)):  # whichever process is asked
            assert server.metric("seg_requests_total", status="200") == result["good"] + ALONE
            assert server.metric("seg_requests_total", status="503") == tested.failures["overloaded"]
            assert server.metric("seg_images_total") == result["good"] + ALONE
            assert server.metric("seg_request_seconds_count") == result["requests"] + ALONE
