"""`python -m export plan`: an engine and its passport in a bundle, or the bundle as it was and one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import export.__main__ as command
from export.tensorrt.package import Package
from server.bundle_files import PLAN_FILE, TWIN_FILE, sha256_of
from server.manifest import Manifest, read_bundle
from tests.export.tensorrt.conftest import with_twin
from tests.export.tensorrt.toys import write_toy


def contents(bundle: Path) -> dict[str, str]:
    return {path.relative_to(bundle).as_posix(): sha256_of(path) for path in bundle.rglob("*") if path.is_file()}


def refused(bundle: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The sentence; the bundle must be as it was."""
    before = contents(bundle)
    assert command.main(["plan", str(bundle), "--builder", "tensorrt-rtx", *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("not built: ")
    assert said.count("\n") == 1
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]  # nothing is left of the attempt
    return said


def test_an_engine_comes_into_the_bundle_with_its_passport(
    rtx: Package, twinned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(twinned)
    options = ["--compute-capability", "8.6,8.9", "--best", "2x64x64", "--level", "2"]
    assert command.main(["plan", str(twinned), "--builder", "tensorrt-rtx", *options]) == 0
    said = capsys.readouterr().out
    assert "[4/4] sealing the manifest" in said
    assert "peak memory" in said
    assert "runs on       compute capability 8.6, 8.9; tensorrt-rtx" in said
    assert "verified      not run" in said

    manifest = read_bundle(twinned).manifest
    passport = manifest.plan
    assert passport is not None
    assert manifest.files[PLAN_FILE] == passport.plan_sha256 == sha256_of(twinned / PLAN_FILE)
    assert manifest.files[TWIN_FILE] == passport.twin_sha256
    assert (passport.package, passport.package_version) == ("tensorrt-rtx", rtx.version)
    assert passport.platform.startswith(sys.platform)
    assert passport.compute_capabilities == ["8.6", "8.9"]
    assert passport.products == passport.products_asked == {"fp32": 10}
    assert (passport.precision, passport.share, passport.verified) == ("fp32", 1.0, "not run")
    assert passport.layers["fp32"] >= 10
    (profile,) = passport.profiles
    assert profile.best["images"] == [2, 64, 64, 3]
    assert profile.largest["images"] == [manifest.max_batch, *manifest.input.frame((9999, 9999)).input_size, 3]
    assert passport.build["level"] == 2
    assert passport.build["tf32"] is False

    after = contents(twinned)
    assert {name for name in after if after[name] != before.get(name)} == {PLAN_FILE, "manifest.json"}
    untold = Manifest.model_validate(json.loads((twinned / "manifest.json").read_text()))
    assert untold == manifest

    (twinned / PLAN_FILE).write_bytes(b"damaged")
    assert "has an engine for tensorrt-rtx already; give --replace" in refused(twinned, capsys)
    assert command.main(["plan", str(twinned), "--builder", "tensorrt-rtx", "--replace", "--max-batch", "1"]) == 0
    capsys.readouterr()
    assert command.main(["verify", str(twinned)]) == 0
    assert "model.plan is intact, and was not run" in capsys.readouterr().out
    again = read_bundle(twinned).manifest.plan
    assert again is not None
    assert again.profiles[0].largest["images"][0] == 1


def test_a_bundle_without_a_twin_says_how_to_get_one(
    rtx: Package, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no model.trt.onnx, which TensorRT builds from; export it again with --tensorrt" in refused(
        tiny_bundle, capsys
    )


def test_a_folder_that_takes_nothing_is_said_before_the_engine_is_built(
    rtx: Package, twinned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdtemp(prefix: str, dir: Path) -> str:  # noqa: A002 - the name of the standard library
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("export.bundle.tempfile.mkdtemp", mkdtemp)
    monkeypatch.setattr("export.plan.build_apart", lambda *args: pytest.fail("it was built"))
    assert f"cannot write in {twinned.parent}: Permission denied; choose a folder" in refused(twinned, capsys)


def test_a_damaged_and_a_missing_twin_are_refused(
    rtx: Package, twinned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = twinned / TWIN_FILE
    twin.write_bytes(twin.read_bytes()[:-1] + b"x")
    assert "model.trt.onnx has sha256" in refused(twinned, capsys)
    twin.unlink()
    assert "model.trt.onnx is missing; the bundle is incomplete" in refused(twinned, capsys)


def test_a_precision_that_is_not_there_leaves_no_engine(
    rtx: Package, twinned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_twin(twinned, twinned / "model.onnx", precision="fp16")
    said = refused(twinned, capsys)
    assert "the manifest says fp16 and model.trt.onnx computes nothing in it; export it again with --precision" in said


def test_a_twin_that_takes_other_sizes_than_the_manifest_says_is_refused(
    rtx: Package, twinned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_twin(twinned, write_toy(tmp_path / "toy.onnx"))
    assert "input 'images' should take" in refused(twinned, capsys)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--best", "7x7"], "--best 7x7 cannot be: this model takes"),
        (["--best", "large"], "--best large should be height x width"),
        (["--max-batch", "99"], "--max-batch 99 should lie in 1..8"),
        (["--workspace", "0"], "--workspace 0 should be at least 1"),
        (["--timing-cache", "kernels.cache"], "tensorrt-rtx measures no kernels while it builds"),
        (["--version-compatible"], "a release of tensorrt-rtx runs its own engines alone; leave it out"),
        (["--hardware", "ampere_plus"], "has no such levels; name the GPUs with --compute-capability"),
        (["--compute-capability", "9.0"], "--compute-capability 9.0: tensorrt-rtx"),
    ],
)
def test_what_cannot_be_asked_for_is_said_before_anything_is_built(
    options: list[str], sentence: str, rtx: Package, twinned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(twinned, capsys, *options)


def test_a_bundle_that_is_none_is_refused(rtx: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plan", str(tmp_path / "tiny" / "1"), "--builder", "tensorrt-rtx"]) == 1
    assert "holds no manifest.json" in capsys.readouterr().err


def test_the_help_teaches_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["plan", "--help"])
    said = capsys.readouterr().out
    assert "python -m export plan bundles/nuclei/1" in said
    assert "pip install tensorrt-rtx-cu13" in said
