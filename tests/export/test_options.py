"""The command line's own words about a model: what they become, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import export.__main__ as command
from export.from_pytorch import builder_options, parse
from models.mask_rcnn import mask_rcnn_tiny
from server.manifest import read_bundle
from server.masks import RoiMasks
from server.preprocess import FixedInput

NEEDED = ["models.mask_rcnn:mask_rcnn_tiny", "--weights", "w", "--out", "b/m/1"]


def options(*flags: str) -> dict[str, object]:
    return builder_options(parse([*NEEDED, *flags]))


def test_only_what_was_given_is_passed_on() -> None:
    assert options() == {}
    assert options("--input-size", "96x128", "--resize", "stretch", "--top", "5") == {
        "input_size": (96, 128),
        "resize": "stretch",
        "top": 5,
    }
    assert options("--mean", "1,2,3.5", "--std", "1,1,1") == {"mean": (1.0, 2.0, 3.5), "std": (1.0, 1.0, 1.0)}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--input-size", "96"], "height x width"),
        (["--input-size", "0x96"], "height x width"),
        (["--resize", "letterbox"], "give --input-size too"),
        (["--mean", "1,2"], "three numbers"),
        (["--std", "1,0,1"], "above 0"),
        (["--top", "0"], "at least 1"),
        (["--input-size", "97x128"], "multiples of 32"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_in_one_line(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "tiny.safetensors"
    save_file(mask_rcnn_tiny().state_dict(), weights)
    out = tmp_path / "bundles" / "tiny" / "1"
    arguments = ["models.mask_rcnn:mask_rcnn_tiny", "--weights", str(weights), "--out", str(out), *flags]
    assert command.main(arguments) == 1
    shown = capsys.readouterr().err
    assert says in shown
    assert len(shown.strip().splitlines()) == 1
    assert not out.exists()


def test_a_choice_the_builder_does_not_have_is_refused(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["models.unet:unet_tiny", "--weights", str(tiny_weights), "--out", str(tmp_path / "m" / "1")]
    assert command.main([*arguments, "--top", "5"]) == 1
    assert "no use for --top" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for words, teaches in (
        (["--help"], "python -m export models.mask_rcnn:mask_rcnn_r50_fpn --weights"),
        (["verify", "--help"], "python -m export verify bundles/nuclei/1"),
        (["conform", "--help"], "--only mmdet_mask_rcnn_r50_fpn/c1"),
    ):
        with pytest.raises(SystemExit):
            command.main(words)
        assert teaches in capsys.readouterr().out


@pytest.mark.proof
def test_options_reach_the_bundle_and_its_verification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "three.safetensors"
    save_file(mask_rcnn_tiny(classes=("a", "b", "c")).state_dict(), weights)
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nhorse\n")
    out = tmp_path / "bundles" / "tiny" / "1"
    arguments = ["models.mask_rcnn:mask_rcnn_tiny", "--weights", str(weights), "--out", str(out), "--max-batch", "3"]
    assert command.main(arguments) == 1
    assert "give --classes with 3 names" in capsys.readouterr().err
    chosen = ["--classes", str(names), "--input-size", "96x128", "--resize", "stretch", "--top", "7"]
    assert command.main([*arguments, *chosen, "--mean", "120,110,100", "--score-threshold", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "peak memory" in said
    assert "row against alone" in said
    manifest = read_bundle(out).manifest
    assert manifest.input == FixedInput(size=(96, 128), resize="stretch", shrink="linear")
    assert manifest.masks == RoiMasks(paste="torchvision")
    assert [entry.name for entry in manifest.classes] == ["cat", "dog", "horse"]
    assert {output.name: output.shape[1] for output in manifest.outputs} == dict.fromkeys(RoiMasks.legend, 7)
    assert [run.batch for run in manifest.parity.runs] == [1, 2, 3]
    assert all(set(run.largest_error) == set(RoiMasks.legend) for run in manifest.parity.runs)
    assert command.main(["verify", str(out), "--weights", str(weights)]) == 0
