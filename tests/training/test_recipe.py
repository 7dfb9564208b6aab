"""The recipe: what is drawn, how it is scored, and that a resumed run is the unbroken one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from models.blocks.normalise import Standardise
from models.unet import UNet
from training.nuclei import data
from training.nuclei.augment import random_crop
from training.nuclei.data import Picture
from training.nuclei.score import dsb_of_picture, score
from training.nuclei.targets import OFFSET_UNIT, from_labels
from training.nuclei.train import rate_at, train


def picture(seed: int = 0) -> Picture:
    rng = np.random.default_rng(seed)
    labels = np.zeros((64, 80), np.int32)
    for number in range(1, 7):
        y, x = rng.integers(0, 52), rng.integers(0, 68)
        labels[y : y + 12, x : x + 12] = number
    image = np.repeat((20 + 150 * (labels > 0)).astype(np.uint8)[..., None], 3, axis=2)
    return Picture("drawn", "drawn", image, labels, coloured=False)


def rle(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def test_targets_of_two_touching_squares() -> None:
    labels = np.zeros((12, 20), np.int32)
    labels[2:9, 2:9] = 1
    labels[2:9, 9:16] = 2
    targets = from_labels(labels, np.ones(labels.shape, bool))
    assert (targets.inside == (labels > 0)).all()
    assert targets.energy[5, 5] == 1.0
    assert targets.energy[5, 12] == 1.0
    assert targets.energy[2, 2] < 0.5
    assert targets.seam[5, 8:10].all()
    assert not targets.seam[:, :6].any()
    rows, columns = np.indices(labels.shape)
    for label, centre in ((1, (5, 5)), (2, (5, 12))):
        mine = labels == label
        np.testing.assert_allclose((rows + OFFSET_UNIT * targets.offset[0])[mine], centre[0], atol=1e-4)
        np.testing.assert_allclose((columns + OFFSET_UNIT * targets.offset[1])[mine], centre[1], atol=1e-4)


def test_pixels_beyond_the_picture_have_no_weight() -> None:
    valid = np.ones((12, 20), bool)
    valid[:, 15:] = False
    assert not from_labels(np.zeros((12, 20), np.int32), valid).weight[:, 15:].any()


def test_the_same_generator_state_gives_the_same_crop() -> None:
    first, second = (random_crop(picture(), 48, np.random.default_rng(5)) for _ in range(2))
    assert first[0].shape == (3, 48, 48)
    assert (first[0] == second[0]).all()
    assert (first[1].offset == second[1].offset).all()
    assert np.isfinite(first[0]).all()


def test_training_sees_pictures_as_the_graph_does() -> None:
    image = np.random.default_rng(0).integers(0, 90, (40, 56, 3)).astype(np.uint8)
    size = torch.tensor([[40, 56]], dtype=torch.int32)
    graph = Standardise()(torch.from_numpy(image)[None], size)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(np.arcsinh(data.standardised(image)), graph, atol=1e-5)


def test_a_resumed_run_ends_with_the_weights_of_the_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.nuclei.train.SIDE", 16)
    monkeypatch.setattr("training.nuclei.train.SAVE_EVERY", 2)
    pictures = [picture(seed) for seed in range(3)]

    def network() -> UNet:
        torch.manual_seed(0)
        return UNet((4, 8), 5)

    whole = train(network(), pictures, tmp_path / "whole", 4, seed=1)

    class Stop(Exception):
        pass

    def stop(step: int, steps: int) -> float:
        if step == 3:
            raise Stop
        return rate_at(step, steps)

    with monkeypatch.context() as patch:
        patch.setattr("training.nuclei.train.rate_at", stop)
        with pytest.raises(Stop):
            train(network(), pictures, tmp_path / "broken", 4, seed=1)
    resumed = train(network(), pictures, tmp_path / "broken", 4, seed=1)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=0)


def test_another_runs_folder_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.nuclei.train.SIDE", 16)
    train(UNet((4, 8), 5), [picture()], tmp_path, 1, seed=1)
    with pytest.raises(SystemExit, match="--seed 1"):
        train(UNet((4, 8), 5), [picture()], tmp_path, 1, seed=2)


def test_a_perfect_answer_scores_one_and_half_of_it_less() -> None:
    drawn = picture()
    masks = [rle(drawn.labels == label) for label in range(1, 7)]
    assert dsb_of_picture(masks, masks) == 1.0
    assert dsb_of_picture(masks, masks[:3]) == pytest.approx(0.5)
    assert dsb_of_picture(masks, [*masks, rle(np.eye(64, 80))]) == pytest.approx(6 / 7)
    assert dsb_of_picture([], []) == 1.0
    assert dsb_of_picture(masks, []) == 0.0
    index = {
        "info": {},
        "images": [{"id": 1, "width": 80, "height": 64}],
        "categories": [{"id": 1, "name": "nucleus"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": m, "area": int(coco_mask.area(m))}
            | {"bbox": coco_mask.toBbox(m).tolist()}
            for i, m in enumerate(masks, start=1)
        ],
    }
    results = [{"image_id": 1, "category_id": 1, "segmentation": m, "score": 0.9} for m in masks]
    figures = score(index, results)
    assert (figures.ap, figures.ap50, figures.dsb) == pytest.approx((1.0, 1.0, 1.0))
    assert score(index, results[:3]).ap == pytest.approx(0.5, abs=0.02)


def test_more_than_a_hundred_detections_count() -> None:
    labels = np.kron(np.arange(1, 145).reshape(12, 12), np.ones((4, 4), int))
    labels[::4] = 0
    masks = [rle(labels == label) for label in range(1, 145)]
    index = {
        "info": {},
        "images": [{"id": 1, "width": 48, "height": 48}],
        "categories": [{"id": 1, "name": "nucleus"}],
        "annotations": [
            {
                "id": i,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": m,
                "area": 12,
                "bbox": [0, 0, 1, 1],
            }
            for i, m in enumerate(masks, start=1)
        ],
    }
    results = [{"image_id": 1, "category_id": 1, "segmentation": m, "score": 0.9} for m in masks]
    assert score(index, results).ap == pytest.approx(1.0)


def test_the_test_fold_is_never_trained_on(tmp_path: Path) -> None:
    records = [{"fold": fold, "group": group} for fold in range(5) for group in range(24)]
    for held_out in (True, False):
        chosen = [r for r in records if data.is_chosen(r, held_out)]
        assert chosen
        assert all(r["fold"] != 0 for r in chosen)
    both = [r for r in records if data.is_chosen(r, True) and data.is_chosen(r, False)]
    assert not both
