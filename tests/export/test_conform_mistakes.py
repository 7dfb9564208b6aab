"""Conformance must fail where a convention is wrong: one deliberate mistake each, and the stage that sees it.

Every one of these networks answers plausibly; all of them load their weights without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from export.conform.cases import Group, read_systems
from export.conform.command import chosen
from export.conform.compare import build, eager_rows
from export.conform.conventions import POOLS, pool
from export.conform.systems import find_system
from models.blocks.mask_rcnn_spec import MaskRCNNSpec
from models.blocks.norm import BatchNorm
from models.blocks.pyramid_pool import PyramidPool
from server.masks.roi import Paste
from tests.shared_data import shared

Change = Callable[[MaskRCNNSpec], MaskRCNNSpec]

pytestmark = pytest.mark.proof

FAMILIES = ("torchvision_maskrcnn_r50_fpn", "d2_mask_rcnn_R_50_FPN", "mmdet_mask_rcnn_r50_fpn")


def group_of(name: str) -> Group:
    golden: Path = shared("golden")
    (group,) = chosen(read_systems(golden), [name])
    return group


def failing(name: str, change: Change) -> set[str]:
    """The stages of a case, in PyTorch, that a changed network does not pass."""
    group = group_of(name)
    system = find_system(group.system)
    assert system is not None
    model, views = build(replace(system, spec=lambda case: change(system.spec(case))), group)
    return {row.stage for row in eager_rows(system, model, views) if row.verdict == "FAIL"}


def another_eps(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    return replace(spec, backbone=replace(spec.backbone, norm=BatchNorm(eps=0.0)))


def another_pool(spec: MaskRCNNSpec, change: Callable[[PyramidPool], PyramidPool]) -> MaskRCNNSpec:
    assert isinstance(spec.pool, PyramidPool)
    assert isinstance(spec.mask_pool, PyramidPool)
    return replace(spec, pool=change(spec.pool), mask_pool=change(spec.mask_pool))


def another_canonical_size(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    return another_pool(spec, lambda pool: replace(pool, level=replace(pool.level, canonical_size=256.0)))


def another_paste(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    other: Paste = "detectron2" if spec.mask_head.paste == "torchvision" else "torchvision"
    return replace(spec, mask_head=replace(spec.mask_head, paste=other))


def another_alignment(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    return another_pool(spec, lambda pool: replace(pool, aligned=not pool.aligned))


@pytest.mark.parametrize("family", FAMILIES)
def test_as_it_should_be_nothing_fails(family: str) -> None:
    assert failing(f"{family}/a", lambda spec: spec) == set()
    assert failing(f"{family}/c1", lambda spec: spec) == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_swapped_eps_is_seen_before_the_rois(family: str) -> None:
    """It changes neither a detection nor a mask by much: raw tensors alone tell."""
    assert "before RoI" in failing(f"{family}/a", another_eps)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_pyramid_level_is_seen_after_the_rois(family: str) -> None:
    stages = failing(f"{family}/c1", another_canonical_size)
    assert {"after RoI", "eager"} <= stages
    assert "before RoI" not in stages


@pytest.mark.parametrize("family", FAMILIES)
def test_the_other_code_bases_paste_is_seen_in_the_masks_alone(family: str) -> None:
    assert failing(f"{family}/a", another_paste) == {"eager"}


@pytest.mark.parametrize("family", FAMILIES)
def test_half_a_cell_is_seen_after_the_rois(family: str) -> None:
    assert "after RoI" in failing(f"{family}/a", another_alignment)


def test_a_level_rule_that_is_off_by_a_hundredth_of_a_pixel_is_seen_on_the_boxes_at_its_edge() -> None:
    group = group_of("conventions_roi_pool/a")
    level = POOLS["torchvision"].level
    moved = replace(level, canonical_size=level.canonical_size + 0.01)
    rows = {
        row.stage: row.verdict
        for row in pool(group.cases[0], POOLS | {"torchvision": replace(POOLS["torchvision"], level=moved)})
    }
    assert rows["torchvision_level"] == "FAIL"
    assert {verdict for stage, verdict in rows.items() if not stage.startswith("torchvision")} == {"pass"}
