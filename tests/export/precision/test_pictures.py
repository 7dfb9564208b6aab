"""Pictures for calibration: as the server places them, and a sentence about those that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.precision import main as compare_precisions
from export.errors import ExportError
from export.precision.pictures import list_pictures, read, spread
from models.unet import nuclei_unet
from server import images
from server.preprocess import place
from tests.export.precision.networks import pictures


def test_a_picture_is_placed_as_the_server_places_it(tmp_path: Path) -> None:
    path = list_pictures(pictures(tmp_path, 1, (300, 200)))[0]
    spec = nuclei_unet().input
    inputs, frame = read(path, spec)
    file = images.survey(path.read_bytes(), 10**8)
    assert frame == spec.frame((300, 200))
    assert (inputs["images"][0] == place(images.decode(file, None), frame)).all()
    assert inputs["sizes"].tolist() == [list(frame.content)]
    assert inputs["sizes"].dtype == np.int32


def test_a_bound_takes_pictures_from_all_over_the_folder(tmp_path: Path) -> None:
    paths = list_pictures(pictures(tmp_path, 9))
    assert [path.stem for path in spread(paths, 3)] == ["0", "4", "8"]
    assert len(list_pictures(tmp_path, most=4)) == 4


def test_what_is_no_picture_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_bytes(b"no picture at all")
    with pytest.raises(ExportError, match=r"notes\.png cannot be read: .*take it out of the folder"):
        read(tmp_path / "notes.png", nuclei_unet().input)


def test_a_folder_that_is_empty_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds no picture"):
        list_pictures(tmp_path)
    with pytest.raises(ExportError, match="should be a folder"):
        list_pictures(tmp_path / "nowhere")


def test_the_comparison_of_precisions_says_what_is_wrong_with_its_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        (["--pictures", str(tmp_path), "bundles/nuclei/1"], "holds no picture"),
        (["--pictures", str(tmp_path), str(tmp_path)], "holds no manifest.json"),
    ):
        assert compare_precisions(arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith("cannot compare: ")
        assert said in told
