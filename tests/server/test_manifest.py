"""Bundles: taken whole and intact, or refused with a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from server.bundle_files import sha256_of
from server.engines.choice import Wanted
from server.errors import BadManifest, GoldenMismatch, HashMismatch, NoEngine, StartupError, UnsupportedModelFile
from server.loading import load
from server.manifest import read_bundle
from server.repository import Repository, find_models


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "bundles" / "tiny" / "1"
    shutil.copytree(tiny_bundle, copy)
    return copy


def edit(bundle: Path, change: Callable[[dict], object]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_an_intact_bundle_loads_and_reproduces_its_golden_sample(bundle: Path) -> None:
    loaded = load(bundle, Wanted(threads=1))
    assert loaded.bundle.manifest.name == "tiny"
    assert loaded.pace_s > 0
    loaded.engine.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.pop("classes"), "classes"),
        (lambda m: m.update(schema_version=2), "schema_version"),
        (lambda m: m.update(name="other"), "other/1"),
        (lambda m: m.update(version=2), "tiny/2"),
        (lambda m: m["masks"].update(kind="riddles"), "kind"),
        (lambda m: m["masks"].update(threshold=1.5), "threshold"),
        (lambda m: m["outputs"].pop(), "outputs"),
        (lambda m: m["classes"].append(m["classes"][0]), "share one id"),
        (lambda m: m["files"].pop("model.onnx"), "model.onnx"),
        (lambda m: m["files"].update({"../../secret": "0" * 64}), "outside"),
        (lambda m: m["files"].update({"/etc/passwd": "0" * 64}), "outside"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    bundle: Path, change: Callable[[dict], object], says: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BadManifest, match=says):
        read_bundle(bundle)


def test_no_manifest_and_broken_json_are_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(BadManifest, match="not JSON"):
        read_bundle(bundle)
    (bundle / "manifest.json").unlink()
    with pytest.raises(BadManifest, match=r"no manifest\.json"):
        read_bundle(bundle)


def test_a_flipped_byte_and_a_missing_file_are_noticed(bundle: Path) -> None:
    model = bundle / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(HashMismatch, match="sha256"):
        read_bundle(bundle)
    model.unlink()
    with pytest.raises(HashMismatch, match="missing"):
        read_bundle(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.onnx"
    (bundle / "model.onnx").rename(elsewhere)
    (bundle / "model.onnx").symlink_to(elsewhere)
    with pytest.raises(BadManifest, match="outside"):
        read_bundle(bundle)


def test_a_corrupt_graph_with_a_matching_hash_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"not a graph")
    edit(bundle, lambda m: m["files"].update({"model.onnx": sha256_of(bundle / "model.onnx")}))
    with pytest.raises(UnsupportedModelFile, match="cannot open"):
        load(bundle, Wanted(threads=1))


def test_another_answer_than_the_golden_one_is_refused(bundle: Path) -> None:
    edit(bundle, lambda m: m["golden"].update(tolerance={"onnxruntime-cpu/fp32": 1e-12}))
    with pytest.raises(GoldenMismatch, match="differs"):
        load(bundle, Wanted(threads=1))
    edit(bundle, lambda m: m["golden"].update(tolerance={"tensorrt/fp16": 1.0}))
    with pytest.raises(NoEngine, match=r"'onnxruntime-cpu/fp32' .* only tensorrt/fp16; export it again"):
        load(bundle, Wanted(threads=1))


def test_an_empty_folder_and_an_unknown_default_model_stop_the_start(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StartupError, match="no bundle"):
        Repository(find_models(tmp_path / "empty"), None)
    with pytest.raises(StartupError, match="tiny"):
        Repository(find_models(bundle.parent.parent), "other")


def test_a_half_written_bundle_is_not_picked_up(bundle: Path) -> None:
    shutil.copytree(bundle, bundle.parent / ".writing-abc")
    assert [model.folder.name for model in Repository(find_models(bundle.parent.parent), None).models] == ["1"]
