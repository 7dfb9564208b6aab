from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from export.conform.cases import Group, read_systems
from export.conform.compare import build
from export.conform.matching import Detections, match
from export.conform.systems import find_system
from export.conform.view import sizes_of
from models import mask_rcnn
from models.blocks.top import UNUSED
from models.mask_rcnn import MaskRCNN, mask_rcnn_tiny
from server.preprocess import FixedInput, ShortestEdgeInput
from tests.models.trained import trained
from tests.shared_data import shared

BYTES = [
    ("d2_mask_rcnn_R_50_FPN", "a"),
    ("d2_mask_rcnn_R_50_FPN", "c1+c2"),
    ("d2_mask_rcnn_R_50_C4", "a"),
    ("d2_mask_rcnn_R_50_DC5", "a"),
    ("mmdet_mask_rcnn_r50_fpn", "c1+c2"),
    ("mmdet_mask_rcnn_r50_caffe_fpn", "a"),
    ("mrb_mask_rcnn_r50_fpn", "a"),
]


def group_of(system: str, name: str) -> Group:
    return next(group for group in read_systems(shared("golden"))[system] if group.name == name)


@pytest.mark.parametrize(("folder", "name"), BYTES)
def test_bytes_in_detections_out_as_the_reference_has_them(folder: str, name: str) -> None:
    """The whole of `forward`, from uint8 pictures that may be padded: colours, their order, zeros beyond, boxes."""
    system = find_system(folder)
    assert system is not None
    model, views = build(system, group_of(folder, name))
    images = torch.from_numpy(np.stack([view.placed() for view in views]))
    images[0, views[0].frame.content[0] :] = 77  # whatever lies beyond a picture does not matter
    with torch.inference_mode():
        answers = {key: tensor.numpy() for key, tensor in model(images, torch.from_numpy(sizes_of(views))).items()}
    for row, view in enumerate(views):
        scores = answers["scores"][row]
        used = scores > 0
        ratios = np.array([view.frame.size[axis] / view.frame.content[axis] for axis in (1, 0, 1, 0)])
        found = Detections(
            boxes=answers["boxes"][row, used] * ratios,
            scores=scores[used].astype(np.float64),
            labels=answers["labels"][row, used].astype(np.int64),
            masks=np.zeros((0, 0, 0), np.bool_),
        )
        assert view.wanted is not None
        assert match(view.wanted, found).share == 1.0


@pytest.fixture(scope="module")
def tiny() -> MaskRCNN:
    return trained(mask_rcnn_tiny())


def pictures(batch: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=generator)


def test_rows_are_fixed_best_first_and_within_the_picture(tiny: MaskRCNN) -> None:
    sizes = torch.tensor([[96, 128], [70, 101]], dtype=torch.int32)
    with torch.inference_mode():
        answer = tiny(pictures(2, (96, 128)), sizes)
    assert {name: tuple(tensor.shape) for name, tensor in answer.items()} == {
        "boxes": (2, 10, 4),
        "scores": (2, 10),
        "labels": (2, 10),
        "mask_logits": (2, 10, 28, 28),
    }
    assert list(answer) == list(tiny.masks.legend)
    assert answer["labels"].dtype == torch.int32
    assert set(answer["labels"].flatten().tolist()) <= {0, 1}
    assert (answer["scores"].diff(dim=1) <= 0).all()
    assert (answer["scores"] > 0).all()
    ends = sizes.flip(1)[:, None]
    assert (answer["boxes"] >= 0).all()
    assert (answer["boxes"][..., 2:] <= ends).all()


def test_a_picture_without_pixels_has_no_detections(tiny: MaskRCNN) -> None:
    with torch.inference_mode():
        answer = tiny(pictures(1, (64, 64)), torch.zeros(1, 2, dtype=torch.int32))
    assert (answer["scores"] == -1).all()
    assert not answer["boxes"].any()
    assert not answer["labels"].any()


def test_raw_tensors_are_those_that_forward_uses(tiny: MaskRCNN) -> None:
    images, sizes = pictures(2, (64, 96)), torch.tensor([[64, 96], [50, 80]], dtype=torch.int32)
    with torch.inference_mode():
        raw = tiny.raw(tiny.normalise(images, sizes), sizes)
        maps = [raw[f"features.{level}"] for level in range(5)]
        boxes, scores, labels = tiny.detect(maps, raw["proposals"], raw["proposal_logits"], sizes)
        answer = tiny(images, sizes)
    assert raw["rpn_logits.0"].shape == (2, 3, 16, 24)
    assert raw["rpn_deltas.4"].shape == (2, 12, 1, 2)
    assert raw["proposals"].shape == (2, 30, 4)
    assert (raw["proposal_logits"] > UNUSED / 2).any()
    assert torch.equal(boxes, answer["boxes"])
    assert torch.equal(scores, answer["scores"])
    assert torch.equal(labels, answer["labels"])
    assert torch.equal(tiny.masks_of(maps, boxes, labels), answer["mask_logits"])


@pytest.mark.parametrize(("planes", "plane"), [(2, 1), (3, 2), (1, 0)])
def test_a_mask_is_its_class_s_plane(tiny: MaskRCNN, monkeypatch: pytest.MonkeyPatch, planes: int, plane: int) -> None:
    """As many planes as classes, one more for the background before them, or one for all."""
    monkeypatch.setattr(tiny, "spec", replace(tiny.spec, mask_head=replace(tiny.spec.mask_head, planes=planes)))
    told = torch.arange(planes).to(torch.float32)[None, :, None, None].expand(1, -1, 2, 2)
    monkeypatch.setattr(tiny, "mask_stage", lambda *_: told)
    chosen = tiny.masks_of([], torch.zeros(1, 1, 4), torch.tensor([[1]], dtype=torch.int32))
    assert (chosen == plane).all()


def test_every_builder_says_what_the_server_needs() -> None:
    for name in mask_rcnn.__all__:
        with torch.device("meta"):
            model = getattr(mask_rcnn, name)(classes=("a", "b", "c"))
        assert model.classes == ("a", "b", "c")
        assert isinstance(model.input, ShortestEdgeInput)
        assert model.input.multiple == model.spec.multiple
        assert 0 < model.score_threshold < 1
        assert model.dialect == model.spec.dialect
        assert model.masks.paste == model.spec.mask_head.paste


def test_a_builder_does_what_it_is_told() -> None:
    with torch.device("meta"):
        model = mask_rcnn_tiny(
            classes=("cell",), input_size=(64, 96), resize="stretch", mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), top=7
        )
    assert model.input == FixedInput(size=(64, 96), resize="stretch", shrink="linear")
    assert (model.spec.colours.mean, model.spec.colours.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert model.spec.detection.rows == 7
    assert model.box_predictor.scores.out_features == 2
    with pytest.raises(ValueError, match=r"\(100, 96\) should be made of multiples of 32"):
        mask_rcnn_tiny(input_size=(100, 96))


def test_names_must_fit_the_classes() -> None:
    spec = mask_rcnn_tiny().spec
    rule = ShortestEdgeInput(short_side=64, long_side=96, multiple=32)
    with pytest.raises(ValueError, match="2 classes apart, got 1 names"):
        MaskRCNN(spec, ("blob",), rule)
