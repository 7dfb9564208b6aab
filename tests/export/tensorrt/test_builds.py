"""`make trt-build` leaves no architecture out, and says which builder stands for which."""

from __future__ import annotations

import ast

import pytest

from export.errors import ExportError
from export.tensorrt import builds
from export.tensorrt.package import Package
from tests.conftest import ROOT


def listed() -> set[str]:
    """Every builder in the list of its architecture."""
    found: set[str] = set()
    for path in (ROOT / "models").glob("*.py"):
        if path.stem == "weights":  # a tool, no architecture
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            match node:
                case ast.Assign(targets=[ast.Name(id="__all__")], value=names):
                    found |= set(ast.literal_eval(names))
    return found


def test_every_architecture_is_built_or_another_stands_for_it() -> None:
    built = {case.builder for case in builds.cases()}
    assert built | builds.SAME.keys() == listed()
    assert not built & builds.SAME.keys()
    for stands in builds.SAME.values():
        assert stands.split(",")[0] in built


def test_fp16_and_int8_are_built_of_an_architecture_of_each_kind() -> None:
    lowered = {(case.module, case.precision) for case in builds.cases() if case.precision != "fp32"}
    assert lowered == {(case.module, precision) for case in builds.cases() for precision in ("fp16", "int8")}


def test_a_narrow_network_keeps_the_operators_of_the_wide_one() -> None:
    for case in builds.cases():
        if case.builder == "mask_rcnn_x101_fpn_d2":
            spec = builds.model_of(case).spec  # type: ignore[attr-defined]
            assert spec.backbone.groups > 1
            assert len(spec.box_head.layers) == 2
            assert len(spec.mask_head.convs) == 4


def test_one_that_cannot_be_built_is_told_and_the_others_go_on(rtx: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(case: builds.Case, path: object) -> None:
        raise ExportError("the exporter failed")

    monkeypatch.setattr(builds, "write_twin", write)
    assert builds.build(builds.Case("models.unet", "unet_tiny"), rtx.name) == ((), "the exporter failed")


def test_a_name_that_nothing_has_is_refused(rtx: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert builds.main(["--builder", "tensorrt-rtx", "--only", "nothing"]) == 2
    assert "no system's name holds 'nothing'" in capsys.readouterr().err
