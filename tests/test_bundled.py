"""The bundled nuclei model as it is served: intact, small, and as good as its card says."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from server.bundle_files import sha256_of
from server.engines.choice import Wanted
from server.loading import load
from server.manifest import read_bundle
from tests.shared_data import shared
from training.nuclei.evaluate import GOALS, evaluate, post
from training.nuclei.server_process import serve

TEN_MB = 10_000_000


def test_the_bundle_is_intact_small_and_made_from_the_committed_checkpoint(root: Path) -> None:
    bundle = read_bundle(root / "bundles/nuclei/1")
    weights = root / "models/weights/nuclei.safetensors"
    assert bundle.manifest.provenance["weights_sha256"] == sha256_of(weights)
    assert weights.stat().st_size <= TEN_MB
    assert sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file()) <= TEN_MB
    load(bundle.folder, Wanted(threads=1)).engine.close()


def test_the_sample_of_the_readme_gives_masks_that_pycocotools_decodes(root: Path) -> None:
    with serve(root / "bundles") as port:
        instances, _ = post(port, (root / "docs/samples/nuclei.png").read_bytes(), "")
    assert len(instances) > 50
    canvas = np.zeros((384, 512), int)
    for instance in instances:
        mask = coco_mask.decode(instance["segmentation"])
        assert mask.sum() == instance["area"]
        canvas += mask
    assert canvas.max() == 1


@pytest.mark.slow
def test_the_figures_on_the_test_fold_reach_the_goals_and_the_card_tells_them(root: Path) -> None:
    folder = shared("data/nuclei")
    with serve(root / "bundles") as port:
        rows = evaluate(folder, port, fold=0)
    print(json.dumps(rows, indent=2))
    assert rows["all"]["ap"] >= GOALS.ap
    assert rows["all"]["ap50"] >= GOALS.ap50
    assert rows["all"]["dsb"] >= GOALS.dsb
    card = (root / "docs/models/nuclei.md").read_text()
    told = re.findall(r"^\| .*? \| \d+ \| \d+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", card, re.MULTILINE)
    assert len(told) == len(rows)
    for figures, (kind, row) in zip(told, rows.items(), strict=True):
        measured = [row["ap"], row["ap50"], row["ap75"], row["dsb"]]
        # another machine's kernels round otherwise, which moves single objects over a threshold
        assert [float(text) for text in figures] == pytest.approx(measured, abs=0.005), kind


def test_a_large_picture_gives_its_memory_back(root: Path) -> None:
    engine = load(root / "bundles/nuclei/1", Wanted(threads=2)).engine
    rng = np.random.default_rng(0)

    def resident_after(side: int) -> float:
        inputs: dict[str, NDArray[Any]] = {
            "images": rng.integers(0, 256, (1, side, side, 3)).astype(np.uint8),
            "sizes": np.array([[side, side]], np.int32),
        }
        engine.run(inputs)
        time.sleep(0.05)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 1e6

    small = resident_after(512)
    resident_after(1408)
    assert resident_after(512) < small + 150
    engine.close()
