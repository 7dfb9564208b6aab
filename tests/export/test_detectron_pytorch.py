"""A checkpoint as Detectron.pytorch's training writes it becomes a bundle, and the bundle is verified."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import export.__main__ as command
from export.source import Exportable, load_weights
from models import weights
from models.weights import read_checkpoint
from server.bundle_files import MODEL_FILE
from server.engines import load_engine
from server.manifest import read_bundle
from server.masks import RoiMasks
from tests.models.checkpoints import honest
from tests.models.dialects.tiny_detectron_pytorch import CLASSES, checkpoint, mask_rcnn_tiny

BUILDER = "tests.models.dialects.tiny_detectron_pytorch:mask_rcnn_tiny"


@pytest.mark.proof
def test_a_checkpoint_goes_from_training_to_a_verified_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = honest.legacy(checkpoint(), tmp_path / "model_1_89999.pth")
    assert weights.main(["show", str(path)]) == 0
    assert "dialect    detectron_pytorch" in capsys.readouterr().out

    out = tmp_path / "bundles" / "tiny" / "1"
    assert command.main([BUILDER, "--weights", str(path), "--out", str(out), "--max-batch", "3"]) == 0
    assert "row against alone" in capsys.readouterr().out
    manifest = read_bundle(out).manifest
    assert manifest.masks == RoiMasks(paste="torchvision")
    assert tuple(entry.name for entry in manifest.classes) == CLASSES
    assert manifest.input == mask_rcnn_tiny().input
    assert [run.batch for run in manifest.parity.runs] == [1, 2, 3]
    assert command.main(["verify", str(out), "--weights", str(path)]) == 0

    generator = np.random.default_rng(0)
    given: dict[str, NDArray] = {
        "images": generator.integers(0, 256, (2, 96, 128, 3), dtype=np.uint8),
        "sizes": np.array([[96, 128], [70, 101]], np.int32),
    }
    engine = load_engine(out / MODEL_FILE, threads=1)
    answer = engine.run(given)
    engine.close()
    assert (answer["scores"][:, 0] > 0).all()
    ends = (
        given["sizes"][:, None, ::-1] - 1
    )  # boxes end with the picture's last pixel, proposals may with the padding's
    assert (answer["boxes"][..., 2:] <= ends).all()
    assert (answer["boxes"] >= 0).all()


def test_what_convert_writes_fills_the_model_as_well(tmp_path: Path) -> None:
    tree = checkpoint()
    converted = tmp_path / "m.safetensors"
    assert weights.main(["convert", str(honest.zipped(tree, tmp_path / "m.pth")), str(converted)]) == 0
    assert read_checkpoint(converted).dialect == "detectron_pytorch"
    model = mask_rcnn_tiny()
    load_weights(cast(Exportable, model), converted)
    state = model.state_dict()
    assert torch.equal(state["mask_head.logits.weight"], tree["model"]["Mask_Outs.classify.weight"])
    assert torch.equal(state["neck.outputs.3.conv.bias"], tree["model"]["Conv_Body.posthoc_modules.0.bias"])
