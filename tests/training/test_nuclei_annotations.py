"""A fold's annotations are those of its pictures, and the export's check reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.precision.accuracy import read_annotations
from tests.shared_data import shared
from training.nuclei.annotations import main


def test_fold_0_is_what_the_export_checks(tmp_path: Path) -> None:
    data = shared("data/nuclei")
    out = tmp_path / "fold0.json"
    assert main(["--data", str(data), "--fold", "0", str(out)]) == 0
    index = json.loads(out.read_text())
    assert {image["fold"] for image in index["images"]} == {0}
    annotated = read_annotations(out, data / "images", ("nucleus",))
    assert (len(annotated.index["images"]), len(annotated.index["annotations"])) == (104, 4184)


def test_a_fold_or_folder_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), str(tmp_path / "out.json")]) == 2
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert main(["--data", str(tmp_path), "--fold", "7", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr().out
    assert "holds no instances.json" in said
    assert "no picture of fold 7" in said
