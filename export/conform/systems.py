"""How each code base wrote its cases down: its settings, its names of raw tensors, its labels, its way of resizing.

Raw tensors get the names that `MaskRCNN.raw` gives them; K is the pyramid level, finest first:

    features.K, rpn_logits.K, rpn_deltas.K          before any RoI
    proposals, proposal_scores                      boxes in the network's frame
    class_logits, box_deltas                        a row for every proposal
    mask_boxes, mask_logits or mask_probabilities   a row for every detection; probabilities are of its class alone

A raw tensor that has no rule here is not compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import yaml
from numpy.typing import NDArray

from export.conform.cases import Case, Size
from export.errors import ExportError
from models.blocks.mask_rcnn_spec import MaskRCNNSpec
from models.dialects import detectron2, maskrcnn_benchmark, mmdetection, torchvision
from server.geometry import Resample
from server.preprocess import ShortestEdgeInput

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class System:
    """A family of cases.

    Args:
        folders: what their folders are called.
        spec: the settings of a case, as ours.
        names, ignored: rules for the keys of the state dict.
        raw: rules for the names of raw tensors, `re.fullmatch` and what it becomes.
        first_label: the number of the first class that is not background.
        proposal_scores: what the code base keeps of a proposal's score.
        resizes_in_float: the picture is normalised and resized as floats; others resize bytes.
        rounding, resample: of its resize rule.
    """

    folders: tuple[str, ...]
    spec: Callable[[Case], MaskRCNNSpec]
    names: Rules
    ignored: Rules
    raw: Rules
    first_label: int
    proposal_scores: Literal["logits", "probabilities"]
    resizes_in_float: bool
    rounding: Literal["floor", "nearest", "short_first"]
    resample: Resample


def find_system(folder: str) -> System | None:
    """The family of a folder's cases; None for one that this version does not have."""
    for system in SYSTEMS:
        if any(fnmatchcase(folder, pattern) for pattern in system.folders):
            return system
    return None


def raw_tensors(system: System, case: Case) -> dict[str, NDArray[Any]]:
    """The case's raw tensors under our names."""
    found = {}
    for name, tensor in case.tensors("raw").items():
        for pattern, ours in system.raw:
            hit = re.fullmatch(pattern, name)
            if hit:
                found[hit.expand(ours)] = tensor
                break
    return found


def input_rule(system: System, case: Case, multiple: int) -> ShortestEdgeInput:
    """The resize rule of a case: from its settings, or from how it tells that it was resized, or what it came to."""
    config = case.meta.get("config", {})
    stated = [int(number) for number in re.findall(r"\d+", str(case.meta.get("resize", "")))]
    sides = [config["min_size"], config["max_size"]] if "min_size" in config else stated or list(_network_size(case))
    return ShortestEdgeInput(
        short_side=min(sides),
        long_side=max(sides),
        multiple=multiple,
        rounding=system.rounding,
        resample=system.resample,
        reduced_decoding=True,
    )


def content_size(system: System, case: Case) -> Size:
    """(height, width) of the picture as the network sees it, without padding."""
    stated = case.meta.get("img_shape")
    if stated:
        return int(stated[0]), int(stated[1])
    if system.resizes_in_float:
        return input_rule(system, case, 1).frame(case.original_size).content
    return _network_size(case)


def _network_size(case: Case) -> Size:
    picture = case.pictures.get("net_u8", case.pictures.get("image_u8"))
    if picture is None:
        raise ExportError(f"{case.path} has neither in/net_u8 nor in/image_u8; a case needs its picture")
    return picture.shape[0], picture.shape[1]


def _torchvision(case: Case) -> MaskRCNNSpec:
    second = case.has("sd/roi_heads.box_head.5.weight")  # four convolutions, then a linear layer: only keys tell
    return (torchvision.spec_v2 if second else torchvision.spec)(_config(case))


def _detectron2(case: Case) -> MaskRCNNSpec:
    return detectron2.spec({"MODEL": _yaml(case, "config_yaml"), "TEST": _yaml(case, "test_cfg")})


def _mmdetection(case: Case) -> MaskRCNNSpec:
    return mmdetection.spec(_config(case))


def _maskrcnn_benchmark(case: Case) -> MaskRCNNSpec:
    config: dict[str, Any] = {"MODEL": _yaml(case, "config_yaml")}
    pixel = case.meta.get("pixel")
    if pixel:
        config["INPUT"] = {
            "PIXEL_MEAN": pixel["mean"],
            "PIXEL_STD": pixel["std"],
            "TO_BGR255": pixel.get("to_bgr255", True),
        }
    return maskrcnn_benchmark.spec(config)


def _config(case: Case) -> dict[str, Any]:
    config = case.meta.get("config")
    if not isinstance(config, Mapping):
        raise ExportError(f"{case.path}: its description has no 'config'; a case needs the settings of its model")
    return dict(config)


def _yaml(case: Case, key: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(case.meta[key])
    except (KeyError, yaml.YAMLError) as error:
        raise ExportError(f"{case.path}: '{key}' of its description is missing or no YAML: {error}") from None
    return dict(settings)


SYSTEMS = (
    System(
        folders=("torchvision_maskrcnn_*",),
        spec=_torchvision,
        names=torchvision.NAMES,
        ignored=torchvision.IGNORED,
        raw=(
            (r"fpn_(\d+)", r"features.\1"),
            (r"fpn_pool", r"features.4"),
            (r"rpn_(logits|deltas)_(\d+)", r"rpn_\1.\2"),
            (r"proposals_0", "proposals"),
            (r"box_cls_logits", "class_logits"),
            (r"box_deltas", "box_deltas"),
            (r"mask_rois", "mask_boxes"),
            (r"mask_logits", "mask_logits"),
            (r"net_input(_s2)?", r"network_input\1"),
        ),
        first_label=1,
        proposal_scores="logits",
        resizes_in_float=True,
        rounding="floor",
        resample="linear",
    ),
    System(
        folders=("d2_mask_rcnn_*",),
        spec=_detectron2,
        names=detectron2.NAMES,
        ignored=detectron2.IGNORED,
        raw=(
            (r"backbone#0\.p2", "features.0"),
            (r"backbone#0\.p3", "features.1"),
            (r"backbone#0\.p4", "features.2"),
            (r"backbone#0\.p5", "features.3"),
            (r"backbone#0\.p6", "features.4"),
            (r"backbone#0\.res[45]", "features.0"),
            (r"proposal_generator\.rpn_head#0\.0\.(\d+)", r"rpn_logits.\1"),
            (r"proposal_generator\.rpn_head#0\.1\.(\d+)", r"rpn_deltas.\1"),
            (r"proposals\.0\.proposal_boxes", "proposals"),
            (r"proposals\.0\.objectness_logits", "proposal_scores"),
            (r"roi_heads\.box_predictor#0\.0", "class_logits"),
            (r"roi_heads\.box_predictor#0\.1", "box_deltas"),
            (r"roi_heads\.mask_head\.predictor#0", "mask_logits"),
            (r"roi_heads\.mask_head#0\.0\.pred_boxes", "mask_boxes"),
            (r"roi_heads\.mask_head#0\.0\.pred_masks", "mask_probabilities"),
            (r"roi_heads\.mask_head#0\.0\.pred_classes", "mask_labels"),
            (r"net_input(_s2)?", r"network_input\1"),
        ),
        first_label=0,
        proposal_scores="logits",
        resizes_in_float=False,
        rounding="nearest",
        resample="triangle",
    ),
    System(
        folders=("mmdet_mask_rcnn_*", "mmdet_dcnv2_*"),
        spec=_mmdetection,
        names=mmdetection.NAMES,
        ignored=mmdetection.IGNORED,
        raw=(
            (r"neck#0\.(\d+)", r"features.\1"),
            (r"rpn_head#0\.0\.(\d+)", r"rpn_logits.\1"),
            (r"rpn_head#0\.1\.(\d+)", r"rpn_deltas.\1"),
            (r"proposals\.0\.bboxes", "proposals"),
            (r"proposals\.0\.scores", "proposal_scores"),
            (r"roi_head\.bbox_head#0\.0", "class_logits"),
            (r"roi_head\.bbox_head#0\.1", "box_deltas"),
            (r"mask_rois", "mask_boxes"),
            (r"roi_head\.mask_head#0(\.0)?", "mask_logits"),
            (r"net_input(_s2)?", r"network_input\1"),
        ),
        first_label=0,
        proposal_scores="probabilities",
        resizes_in_float=False,
        rounding="nearest",
        resample="linear",
    ),
    System(
        folders=("mrb_mask_rcnn_*",),
        spec=_maskrcnn_benchmark,
        names=maskrcnn_benchmark.NAMES,
        ignored=maskrcnn_benchmark.IGNORED,
        raw=(
            (r"rpn\.head\.0\.(\d+)", r"rpn_logits.\1"),
            (r"rpn\.head\.1\.(\d+)", r"rpn_deltas.\1"),
            (r"rpn\.box_selector_test\.0\.bbox", "proposals"),
            (r"rpn\.box_selector_test\.0\.objectness", "proposal_scores"),
            (r"roi_heads\.box\.predictor\.0", "class_logits"),
            (r"roi_heads\.box\.predictor\.1", "box_deltas"),
            (r"mask_rois", "mask_boxes"),
            (r"mask_prob_\d+", "mask_probabilities"),
            (r"roi_heads\.mask\.predictor", "mask_logits"),
            (r"net_input(_s2)?", r"network_input\1"),
        ),
        first_label=1,
        proposal_scores="probabilities",
        resizes_in_float=False,
        rounding="short_first",
        resample="triangle",
    ),
)
