"""A checkpoint of full size goes from file to served masks with two commands."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from export.sample import draw_tissue
from server.rle import counts_to_mask, string_to_counts
from tests.export.synthetic import synthetic
from tests.shared_data import shared

WRITING_S, WRITING_MB = 60, 4000  # what writing the graph may take on two cores


@contextmanager
def running(command: list[str], root: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], limit_s: float) -> None:
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        assert process.poll() is None, "the server ended"
        try:
            with urlopen(f"{url}/readyz", timeout=5):
                return
        except (URLError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(f"not ready after {limit_s} s")


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_torchvisions_mask_rcnn_goes_from_file_to_served_masks(
    tmp_path: Path, root: Path, unused_port: Callable[[], int]
) -> None:
    weights = tmp_path / "maskrcnn_resnet50_fpn.pth"
    torch.save(synthetic(shared("golden/_keys") / "torchvision_maskrcnn_resnet50_fpn.json"), weights)

    export = [sys.executable, "-m", "export", "models.mask_rcnn:mask_rcnn_r50_fpn", "--weights", str(weights)]
    export += ["--out", str(tmp_path / "bundles" / "coco" / "1"), "--max-batch", "2"]
    done = subprocess.run(export, cwd=root, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("writing the graph ")]
    seconds, _, memory, _ = line.removeprefix("writing the graph ").split()
    assert float(memory) < WRITING_MB
    print(
        f"writing the graph took {seconds} s of {WRITING_S}, {memory} MB of {WRITING_MB}"
    )  # time is the machine's too

    port = unused_port()
    serve = [sys.executable, "-m", "server", "--bundles", str(tmp_path / "bundles"), "--port", str(port)]
    with running(serve, root) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, limit_s=120)
        answer = segment(url, draw_tissue((360, 500), seed=3))
    assert answer["image"] == {"width": 500, "height": 360}
    assert len(answer["instances"]) > 10
    for instance in answer["instances"]:
        mask = counts_to_mask(string_to_counts(instance["segmentation"]["counts"]), (360, 500))
        assert mask.sum() == instance["area"]
        x, y, width, height = instance["bbox"]
        rows, columns = np.nonzero(mask)
        if rows.size:  # masks lie in their boxes, a pixel of rounding aside
            assert columns.min() >= x - 2
            assert columns.max() <= x + width + 2
            assert rows.min() >= y - 2
            assert rows.max() <= y + height + 2


def segment(url: str, picture: np.ndarray) -> dict[str, Any]:
    payload = io.BytesIO()
    Image.fromarray(picture).save(payload, "PNG")
    request = Request(f"{url}/v1/segment?score_threshold=0.05", data=payload.getvalue(), method="POST")
    request.add_header("Content-Type", "image/png")
    with urlopen(request, timeout=120) as response:
        answered: dict[str, Any] = json.load(response)
    return answered
