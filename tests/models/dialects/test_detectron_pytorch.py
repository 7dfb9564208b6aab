"""Detectron.pytorch: names, shapes, settings, and numbers as far as a recorded case of its fork PANet has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.conform.cases import Case, read_systems
from export.conform.compare import eager_rows
from export.conform.conventions import painted
from export.conform.matching import ABSOLUTE_AFTER_ROI, Detections, differ, match
from export.conform.systems import System
from export.conform.view import View, see
from export.errors import ExportError
from export.source import build, load_weights
from models import mask_rcnn
from models.blocks.anchors import by_ratio
from models.blocks.boxes import clip
from models.blocks.detections import detections
from models.blocks.mask_rcnn_spec import MaskRCNNSpec
from models.blocks.norm import Affine, GroupNorm
from models.blocks.pyramid_pool import PyramidPool
from models.blocks.rpn import RPN
from models.blocks.top import UNUSED
from models.dialects import detectron_pytorch, published
from models.mask_rcnn import MaskRCNN
from models.weights import read_checkpoint, rename
from server.masks.roi import paste_masks
from tests.models.checkpoints import honest
from tests.models.dialects import detectron_pytorch_names as written
from tests.models.dialects.detectron_pytorch_names import Widths
from tests.models.dialects.panet import ADDED, HEADS, PANet
from tests.models.dialects.tiny_detectron_pytorch import checkpoint
from tests.shared_data import shared

BUILDERS = {
    "mask_rcnn_r50_fpn_detectron_pytorch": Widths(),
    "mask_rcnn_r101_fpn_detectron_pytorch": Widths(blocks=(3, 4, 23, 3)),
    "mask_rcnn_x101_fpn_detectron_pytorch": Widths(blocks=(3, 4, 23, 3), middle=256, groups=32),
}
# The widths of the recorded case: those of the code base over 32.
SLIM = Widths(stem=2, middle=2, stage=8, pyramid=8, hidden=32, mask=8, classes=7, pyramid_norm=True)
SHARED = {**written.body(SLIM), **written.rpn(SLIM), **written.upconv(SLIM), **written.outputs(SLIM)}

PANET = System(
    folders=("orig_panet_*",),
    spec=lambda case: spec_of(case),
    names=detectron_pytorch.NAMES,
    ignored=detectron_pytorch.IGNORED,
    raw=(
        *((rf"Conv_Body\.{i}", f"features.{4 - i}") for i in range(5)),
        *((rf"RPN\.rpn_cls_logits_fpn{k + 2}", f"rpn_logits.{k}") for k in range(5)),
        *((rf"RPN\.rpn_bbox_pred_fpn{k + 2}", f"rpn_deltas.{k}") for k in range(5)),
        (r"Box_Outs\.1", "box_deltas"),
    ),
    first_label=1,
    proposal_scores="probabilities",
    resizes_in_float=False,
    rounding="nearest",
    resample="linear",
)


def spec_of(case: Case) -> MaskRCNNSpec:
    """PANet's configuration where it is Detectron.pytorch's own, in the case's widths."""
    told = case.meta["config"]
    config = published.detectron_pytorch(told["num_classes"] - 1)
    config["PIXEL_MEANS"] = told["pixel_means"]
    config["FPN"] |= {"USE_GN": True, "DIM": SLIM.pyramid, "RPN_ANCHOR_START_SIZE": told["rpn_anchor_start"]}
    config["GROUP_NORM"] = {"NUM_GROUPS": told["GN_groups"]}
    config["FAST_RCNN"]["MLP_HEAD_DIM"] = SLIM.hidden
    config["MRCNN"]["DIM_REDUCED"] = SLIM.mask
    config["TEST"] |= {
        "RPN_PRE_NMS_TOP_N": told["rpn_pre"],
        "RPN_POST_NMS_TOP_N": told["rpn_post"],
        "SCORE_THRESH": told["score_thresh"],
        "NMS": told["nms"],
        "DETECTIONS_PER_IM": told["dets"],
    }
    spec = detectron_pytorch.spec(config)
    slim = replace(spec.backbone, stem_channels=SLIM.stem, middle=SLIM.middle, channels=SLIM.stage)
    return replace(spec, backbone=slim)


def shapes(model: MaskRCNN) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class Recorded:
    """The case of PANet, and its tensors."""

    case: Case
    state: dict[str, Tensor]
    raw: dict[str, NDArray]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(R, 4), the proposals that the box head was given."""
        return np.ascontiguousarray(self.raw["RPN.rois"][:, 1:])

    def view(self, spec: MaskRCNNSpec) -> View:
        view = see(PANET, self.case, spec.multiple)
        return replace(view, raw={**view.raw, "proposals": self.boxes})


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    (group,) = read_systems(shared("golden"))["orig_panet_r50_fpn"]
    (case,) = group.cases
    return Recorded(case, case.state(), case.tensors("raw"))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


# ---- names


def test_names_and_shapes_are_those_recorded_where_panet_adds_nothing(recorded: Recorded) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in recorded.state.items()}
    assert {name: found.get(name) for name in SHARED} == SHARED
    left = [name for name in found if name not in SHARED and not re.match(ADDED, name)]
    assert left == [name for name in left if any(re.fullmatch(pattern, name) for pattern, _ in HEADS)]


def test_every_shared_weight_finds_its_place(recorded: Recorded) -> None:
    with torch.device("meta"):
        model = MaskRCNN(spec_of(recorded.case), tuple("abcdef"), detectron_pytorch.INPUT)
    ours = rename(list(SHARED), detectron_pytorch.NAMES)
    assert len(set(ours.values())) == len(SHARED)
    wanted = shapes(model)
    assert {name: wanted.get(name) for name in ours.values()} == {ours[name]: SHARED[name] for name in SHARED}
    others = set(wanted) - set(ours.values())
    assert {name.rpartition(".")[0].rstrip("0123456789.") for name in others} == {
        "box_head.layers",
        *(f"mask_head.convs.{i}.conv" for i in range(4)),
    }


@pytest.mark.parametrize("name", BUILDERS)
def test_a_full_size_checkpoint_fits_to_the_last_key(name: str) -> None:
    with torch.device("meta"):
        model = getattr(mask_rcnn, name)()
    listed = written.state_of(BUILDERS[name])
    ours = rename(list(listed), detectron_pytorch.NAMES)
    assert len(set(ours.values())) == len(listed)
    assert {ours[theirs]: shape for theirs, shape in listed.items()} == shapes(model)


def test_a_backbone_with_group_norm_has_its_names_too() -> None:
    config = published.detectron_pytorch(2)
    config["RESNETS"] = {
        "TRANS_FUNC": "bottleneck_gn_transformation",
        "STEM_FUNC": "basic_gn_stem",
        "SHORTCUT_FUNC": "basic_gn_shortcut",
    }
    with torch.device("meta"):
        model = MaskRCNN(detectron_pytorch.spec(config), ("a", "b"), detectron_pytorch.INPUT)
    listed = {
        re.sub(r"\.bn(\d)\.", r".gn\1.", name): shape for name, shape in written.state_of(Widths(classes=3)).items()
    }
    ours = rename(list(listed), detectron_pytorch.NAMES)
    assert {ours[theirs]: shape for theirs, shape in listed.items()} == shapes(model)
    assert model.spec.backbone.norm == GroupNorm(groups=32, eps=1e-5)


@pytest.mark.proof
def test_a_full_size_checkpoint_fills_its_model_with_nothing_left_over(tmp_path: Path) -> None:
    """As training saves it: the optimiser's momenta have the weights' shapes."""
    name = "mask_rcnn_r50_fpn_detectron_pytorch"
    state = {key: torch.zeros(()).expand(shape) for key, shape in written.state_of(BUILDERS[name]).items()}
    momenta = {i: {"momentum_buffer": tensor} for i, tensor in enumerate(state.values())}
    tree = {"model": state, "optimizer": {"state": momenta, "param_groups": []}, "step": 90_000, "epoch": 6}
    model = build(f"models.mask_rcnn:{name}")
    load_weights(model, honest.legacy(tree, tmp_path / "model_6_90000.pth"))


@pytest.mark.parametrize("write", [honest.legacy, honest.zipped])
def test_a_checkpoint_is_read_out_of_what_training_saved(write: Callable[..., Path], tmp_path: Path) -> None:
    tree = checkpoint()
    read = read_checkpoint(write({**tree, "blobs": {}}, tmp_path / "model_1_89999.pth"))
    assert read.dialect == "detectron_pytorch"
    assert read.metadata == {"epoch": "1", "step": "89999", "iters_per_epoch": "14786"}
    assert read.tensors.keys() == tree["model"].keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in tree["model"].items())


def test_keypoints_are_left_out_and_the_rest_fits(tmp_path: Path) -> None:
    tree = checkpoint()
    tree["model"] |= {
        "Keypoint_Head.convs.0.weight": torch.zeros(1),
        "Keypoint_Outs.upsample.upconv.bias": torch.zeros(1),
    }
    model = build("tests.models.dialects.tiny_detectron_pytorch:mask_rcnn_tiny")
    load_weights(model, honest.zipped(tree, tmp_path / "m.pth"))


def test_other_checkpoints_of_the_family_are_told(tmp_path: Path, recorded: Recorded) -> None:
    with pytest.raises(ExportError, match=r"should have maskrcnn_benchmark's names, found detectron_pytorch ones"):
        load_weights(build("models.mask_rcnn:mask_rcnn_r50_fpn_mrb"), honest.zipped(checkpoint(), tmp_path / "m.pth"))
    panet = honest.zipped({"model": recorded.state}, tmp_path / "panet.pth")
    with pytest.raises(
        ExportError, match=r"is not of this architecture: .*missing.*unexpected.*of another shape"
    ) as told:
        load_weights(build("tests.models.dialects.tiny_detectron_pytorch:mask_rcnn_tiny"), panet)
    sentence, *lists = str(told.value).split("\n")
    assert "the checkpoint tells 6 classes apart and the model 2" in sentence
    assert "    Box_Head.conv1_head.0.0.weight" in lists


# ---- numbers


def failing(recorded: Recorded, change: Callable[[MaskRCNNSpec], MaskRCNNSpec]) -> dict[str, str]:
    """The stages, in PyTorch, that PANet round a changed network does not pass, and what was seen there."""
    spec = change(spec_of(recorded.case))
    rows = list(eager_rows(PANET, PANet(spec, recorded.state), [recorded.view(spec)]))
    assert [row.stage for row in rows] == ["before RoI", "proposals", "after RoI", "eager"]
    return {row.stage: row.worst for row in rows if row.verdict == "FAIL"}


def test_raw_tensors_proposals_detections_and_masks_are_the_recorded_ones(recorded: Recorded) -> None:
    """15 maps before the boxes, 60 proposals, the offsets of 60 boxes, 40 detections and the pixels of 40 masks."""
    assert failing(recorded, lambda spec: spec) == {}


@pytest.mark.parametrize("level", range(5))
def test_the_proposals_of_every_level_are_the_recorded_ones(recorded: Recorded, level: int) -> None:
    spec = spec_of(recorded.case).rpn
    alone = replace(spec.anchors, cells=spec.anchors.cells[level : level + 1], strides=spec.anchors.strides[level:][:1])
    logits, deltas = (
        torch.from_numpy(recorded.raw[f"RPN.rpn_{name}_fpn{level + 2}"]) for name in ("cls_logits", "bbox_pred")
    )
    boxes, logits = RPN(SLIM.pyramid, replace(spec, anchors=alone)).propose(
        [(logits, deltas)], (128, 192), torch.tensor([[128, 192]])
    )
    used = logits[0] > UNUSED / 2
    wanted = recorded.raw[f"RPN.rpn_rois_fpn{level + 2}"][:, 1:]
    assert int(used.sum()) == len(wanted)
    torch.testing.assert_close(boxes[0, used], torch.from_numpy(wanted), rtol=0, atol=1e-3)
    scores = torch.from_numpy(recorded.raw[f"RPN.rpn_rois_prob_fpn{level + 2}"][:, 0])
    torch.testing.assert_close(logits[0, used].sigmoid(), scores, rtol=0, atol=1e-6)


def test_class_scores_and_the_boxes_of_all_classes_are_the_recorded_ones(recorded: Recorded) -> None:
    spec = spec_of(recorded.case)
    panet, view = PANet(spec, recorded.state), recorded.view(spec)
    x = panet.normalise(torch.from_numpy(view.placed()[None]), torch.tensor([view.frame.content]))
    boxes = torch.from_numpy(recorded.boxes)
    logits, _ = panet.box_stage(panet.maps(x), boxes[None])
    scores = differ(logits.softmax(dim=1).numpy(), recorded.raw["all_scores"], ABSOLUTE_AFTER_ROI)
    assert scores.of_tolerance <= 1
    moves = torch.from_numpy(recorded.raw["Box_Outs.1"]).unflatten(1, (-1, 4))  # (R, classes, 4)
    moved = clip(spec.detection.coder.decode(moves, boxes[:, None]), torch.tensor([[[128, 192]]]), extent=1.0)
    np.testing.assert_allclose(moved.flatten(1).numpy(), recorded.raw["all_boxes"], rtol=0, atol=1e-4)


def backwards(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    return replace(spec, colours=replace(spec.colours, order=(0, 1, 2)))


def another_stride(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    return replace(spec, backbone=replace(spec.backbone, stride_in_1x1=False))


def another_eps(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    assert spec.neck is not None
    assert isinstance(spec.neck.norm, GroupNorm)
    return replace(spec, neck=replace(spec.neck, norm=replace(spec.neck.norm, eps=1e-4)))


def smooth_anchors(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    cells = tuple(by_ratio([16 << level], (0.5, 1, 2)) for level in range(5))
    return replace(spec, rpn=replace(spec.rpn, anchors=replace(spec.rpn.anchors, cells=cells)))


def proposals_without_last_pixel(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    return replace(spec, rpn=replace(spec.rpn, coder=replace(spec.rpn.coder, extent=0.0)))


def boxes_without_last_pixel(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    return replace(spec, detection=replace(spec.detection, coder=replace(spec.detection.coder, extent=0.0)))


def half_a_cell(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    assert isinstance(spec.pool, PyramidPool)
    return replace(spec, pool=replace(spec.pool, aligned=True))


def another_paste(spec: MaskRCNNSpec) -> MaskRCNNSpec:
    return replace(spec, mask_head=replace(spec.mask_head, paste="detectron2"))


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (backwards, "before RoI"),
        (another_stride, "before RoI"),
        (another_eps, "before RoI"),
        (smooth_anchors, "proposals"),
        (proposals_without_last_pixel, "proposals"),
        (half_a_cell, "after RoI"),
        (boxes_without_last_pixel, "eager"),
        (another_paste, "eager"),
    ],
)
def test_a_mistake_is_seen_where_it_is_made(
    recorded: Recorded, change: Callable[[MaskRCNNSpec], MaskRCNNSpec], first: str
) -> None:
    assert next(iter(failing(recorded, change))) == first


def test_levels_that_are_taken_from_the_finest_on_are_seen(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs of the pyramid have one shape: nothing but the numbers tells."""
    turned = tuple(
        (re.sub(r"posthoc_modules\\.(\d)", lambda match: rf"posthoc_modules\.{3 - int(match[1])}", pattern), ours)
        for pattern, ours in detectron_pytorch.NAMES
    )
    monkeypatch.setattr(detectron_pytorch, "NAMES", turned)
    assert "before RoI" in failing(recorded, lambda spec: spec)


def test_the_last_pixel_of_a_scaled_photograph_is_worth_little(recorded: Recorded) -> None:
    """Their final boxes have it in the photograph, ours in the network's input, which is 5/3 as large for 480 x 640."""
    scale = 5 / 3
    spec = spec_of(recorded.case).detection
    found = []
    for extent in (scale, 1.0):
        boxes, scores, labels = detections(
            torch.from_numpy(recorded.raw["Box_Outs.0"])[None],
            torch.from_numpy(recorded.raw["Box_Outs.1"])[None],
            torch.from_numpy(recorded.boxes)[None],
            torch.ones(1, len(recorded.boxes), dtype=torch.bool),
            torch.tensor([[128, 192]]),
            replace(spec, coder=replace(spec.coder, extent=extent)),
        )
        place = boxes[0].numpy().astype(np.float64) / scale
        found.append(Detections(place, scores[0].double().numpy(), labels[0].numpy(), np.zeros((0, 0, 0), np.bool_)))
    theirs, ours = found
    result = match(theirs, ours, box_iou=0.5)
    apart = [np.abs(theirs.boxes[one] - ours.boxes[other]) for one, other in result.pairs]
    assert len(result.pairs) >= 39  # of 40: one more or less overlaps too much
    assert np.max(apart) < 1 - 1 / scale + 1e-4
    assert np.mean(apart) < 0.05


# ---- conventions


@pytest.mark.parametrize("size", [(96, 128), (300, 211)])
def test_masks_are_pasted_as_segm_results_does_it(size: tuple[int, int]) -> None:
    """Detectron's rule, with OpenCV: a frame of zeros, the box larger by it and cut down to whole pixels, the last one
    included, resized bilinearly, more than a half."""
    generator = np.random.default_rng(size[0])
    squares = cv2.GaussianBlur(generator.random((28, 28, 60), np.float32), (5, 5), 0).transpose(2, 0, 1)
    squares = (squares - squares.mean()) / squares.std() * 0.2 + 0.5
    corners = generator.uniform(-0.2, 1.0, (60, 2)) * size[::-1]
    boxes = np.concatenate([corners, corners + generator.uniform(1, 120, (60, 2))], axis=1).astype(np.float32)
    differing = covered = 0
    for square, box, patch in zip(squares, boxes, paste_masks(squares, boxes, size, "torchvision", 0.5), strict=True):
        half, centre = (box[2:] - box[:2]) * 0.5 * (30 / 28), (box[2:] + box[:2]) * 0.5
        (x1, y1), (x2, y2) = (centre - half).astype(np.int32), (centre + half).astype(np.int32)
        grown = cv2.resize(np.pad(square, 1), (int(max(x2 - x1 + 1, 1)), int(max(y2 - y1 + 1, 1)))) > 0.5
        wanted = np.zeros(size, np.bool_)
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, size[1]), min(y2 + 1, size[0])
        if left < right and top < bottom:
            wanted[top:bottom, left:right] = grown[top - y1 : bottom - y1, left - x1 : right - x1]
        differing += int((wanted ^ painted(patch, size)).sum())
        covered += int(wanted.sum())
    assert covered > 10_000
    assert differing <= covered / 10_000  # a value of just a half, rounded to either side


def test_numbers_that_no_shape_shows() -> None:
    spec = detectron_pytorch.spec(published.detectron_pytorch(80))
    assert spec.backbone.stride_in_1x1
    assert spec.backbone.norm == Affine()
    assert (spec.colours.mean, spec.colours.order) == ((122.7717, 115.9465, 102.9801), (2, 1, 0))  # told in RGB
    assert spec.colours.std == (1.0, 1.0, 1.0)
    assert isinstance(spec.pool, PyramidPool)
    assert (spec.pool.sampling, spec.pool.aligned, spec.pool.level.extent) == (2, False, 1.0)
    assert (spec.rpn.before_nms, spec.rpn.after_nms, spec.rpn.proposals, spec.rpn.edge_multiple) == (
        1000,
        1000,
        1000,
        32,
    )
    assert spec.rpn.anchors.cells[0] == (
        (-22.0, -10.0, 25.0, 13.0),
        (-14.0, -14.0, 17.0, 17.0),
        (-10.0, -22.0, 13.0, 25.0),
    )
    assert spec.detection.coder.weights == (10.0, 10.0, 5.0, 5.0)
    assert (spec.detection.first_class, spec.mask_head.planes, spec.mask_head.paste) == (1, 81, "torchvision")
    assert not detectron_pytorch.spec(published.detectron_pytorch_x101(80)).backbone.stride_in_1x1


def test_an_overlap_of_just_the_threshold_is_too_much() -> None:
    spec = detectron_pytorch.spec(published.detectron_pytorch(1))
    half, below = np.float32(0.5), np.float32(0.49999997)
    assert half > spec.detection.iou
    assert not below > spec.detection.iou
    assert float(np.float32(0.7)) < 0.7  # so an overlap of what single precision has for 0.7 is less
    assert np.float32(spec.rpn.iou) == np.float32(0.7)


def test_boxes_for_all_classes_together_and_a_mask_for_all() -> None:
    config = published.detectron_pytorch(4)
    config["MODEL"]["CLS_AGNOSTIC_BBOX_REG"] = True
    config["MRCNN"]["CLS_SPECIFIC_MASK"] = False
    spec = detectron_pytorch.spec(config)
    assert (spec.box_head.score_columns, spec.box_head.box_sets, spec.detection.sets) == (5, 2, 1)
    assert spec.mask_head.planes == 1


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("MODEL", "CONV_BODY", "ResNet.ResNet50_conv4_body"),
        ("RESNETS", "STEM_FUNC", "basic_gn_stem"),
        ("RPN", "CLS_ACTIVATION", "softmax"),
        ("FPN", "RPN_MAX_LEVEL", 7),
        ("FAST_RCNN", "ROI_BOX_HEAD", "fast_rcnn_heads.roi_Xconv1fc_gn_head"),
        ("FAST_RCNN", "ROI_XFORM_METHOD", "RoIPoolF"),
        ("MRCNN", "ROI_MASK_HEAD", "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs_gn"),
        ("MRCNN", "DILATION", 2),
        ("MRCNN", "RESOLUTION", 56),
        ("TEST", "SOFT_NMS", {"ENABLED": True}),
        ("TEST", "RPN_MIN_SIZE", 4),
    ],
)
def test_a_setting_that_would_be_left_out_is_refused(section: str, option: str, value: object) -> None:
    config = published.detectron_pytorch(3)
    config.setdefault(section, {})[option] = value
    with pytest.raises(ValueError, match=rf"{section}\.?.*{option}.* got "):
        detectron_pytorch.spec(config)


def test_what_a_configuration_leaves_out_is_the_code_base_s_default() -> None:
    config = published.detectron_pytorch(3)
    del config["MRCNN"]["DILATION"]
    with pytest.raises(ValueError, match=r"MRCNN\.DILATION should be 1, got 2"):
        detectron_pytorch.spec(config)
    del config["TEST"]["NMS"]
    config["MRCNN"]["DILATION"] = 1
    assert detectron_pytorch.spec(config).detection.iou == pytest.approx(0.3)
