"""`export verify`: a bundle is what it was, and answers as it promised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import export.__main__ as command
from server.bundle_files import sha256_of
from tests.export.graphs import Graph


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "tiny" / "1"))


def change(bundle: Path, **fields: Any) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_sound_bundle_is_told_so_with_times_and_memory(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["verify", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert "tiny/1 is intact, and answers here as it promised" in said
    assert "batch 1, 2, 3, 8" in said
    assert "peak memory" in said


def test_with_its_weights_it_is_compared_with_pytorch_again(
    bundle: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["verify", str(bundle), "--weights", str(tiny_weights)]) == 0
    assert "comparing with PyTorch" in capsys.readouterr().out


def test_a_bundle_can_be_named_from_inside_its_folder(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    assert command.main(["verify", "."]) == 0


def test_an_adopted_bundle_is_verified_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundles" / "light" / "1"
    file = Graph().write(tmp_path / "foreign.onnx")
    adopted = ["adopt", str(file), "--layout", "maskserve", "--out", str(out), "--class-count", "2"]
    assert command.main(adopted) == 0
    assert command.main(["verify", str(out)]) == 0
    assert command.main(["verify", str(out), "--weights", str(file)]) == 1
    assert "leave out --weights" in capsys.readouterr().err


def test_what_is_wrong_is_said_in_one_line(
    bundle: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(says: str, *arguments: str) -> None:
        assert command.main(["verify", *arguments]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("not verified: ")
        assert says in shown
        assert len(shown.strip().splitlines()) == 1

    refused("holds no manifest.json", str(tmp_path / "nothing" / "1"))
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny_weights.read_bytes() + b" ")
    refused("export this one", str(bundle), "--weights", str(other))
    refused("does not exist", str(bundle), "--weights", str(tmp_path / "none.pth"))

    whole = json.loads((bundle / "manifest.json").read_text())
    change(bundle, golden=whole["golden"] | {"tolerance": {"onnxruntime-cpu/fp32": 0.0}})
    refused("differs from the golden sample", str(bundle))
    graph = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(graph + b"\0")
    refused("sha256", str(bundle))


def test_a_graph_that_breaks_a_law_is_found_though_its_sha256_is_right(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Graph().write(bundle / "model.onnx")
    whole = json.loads((bundle / "manifest.json").read_text())
    change(bundle, files=whole["files"] | {"model.onnx": sha256_of(bundle / "model.onnx")})
    assert command.main(["verify", str(bundle)]) == 1
    assert "not verified" in capsys.readouterr().err
