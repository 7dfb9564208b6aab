"""Choose the parameters of grouping and the default threshold on the held-out pictures, never on the test fold.

`python -m training.nuclei.tune --data ../shared/data/nuclei --weights models/weights/nuclei.safetensors` runs the
network once over the held-out pictures, then scores one change at a time against what `models.unet:nuclei_unet` says.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file

from models.unet import CenterOffsetUNet, nuclei_unet
from server.geometry import Frame, Picture
from server.masks import CenterOffsetMasks, Outputs
from server.preprocess import place
from server.rle import encode
from training.nuclei import data
from training.nuclei.score import score

CHANGES: dict[str, list[float]] = {
    "threshold": [0.55, 0.6, 0.65, 0.7, 0.75],
    "blur": [2.0, 2.5, 3.0],
    "apart": [7, 11, 15],
    "min_votes": [8, 16, 32],
    "min_area": [1, 12, 20],
    "spread": [0.25, 0.4, 0.6],
}
THRESHOLDS = [0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7]


def ground_truth(pictures: list[data.Picture]) -> dict:
    """The pictures' labels as a COCO index; a picture's id is its position, from 1."""
    index: dict = {"info": {}, "images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
    for number, picture in enumerate(pictures, start=1):
        height, width = picture.labels.shape
        index["images"].append({"id": number, "width": width, "height": height})
        for label in range(1, int(picture.labels.max()) + 1):
            bits = picture.labels == label
            if bits.any():
                mask = coco_mask.encode(np.asfortranarray(bits.astype(np.uint8)))
                entry = {"id": len(index["annotations"]) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
                index["annotations"].append(
                    entry | {"segmentation": mask, "area": int(bits.sum()), "bbox": [0, 0, 1, 1]}
                )
    return index


@torch.inference_mode()
def run(model: CenterOffsetUNet, pictures: list[data.Picture]) -> list[tuple[Outputs, Frame]]:
    """The network's outputs for every picture, placed as the server does it."""
    found: list[tuple[Outputs, Frame]] = []
    for number, picture in enumerate(pictures, start=1):
        height, width = picture.labels.shape
        frame = model.input.frame((height, width))
        tensor = place(Picture(picture.image, covers=(0, 0, width, height)), frame)
        outputs = model(torch.from_numpy(tensor)[None], torch.tensor([frame.content], dtype=torch.int32))
        found.append(({name: value[0].numpy() for name, value in outputs.items()}, frame))
        print(f"\r{number}/{len(pictures)} pictures", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def results_of(masks: CenterOffsetMasks, found: list[tuple[Outputs, Frame]]) -> list[dict]:
    results = []
    for number, (outputs, frame) in enumerate(found, start=1):
        segments = list(masks.decode(outputs, frame, 0.0))
        for segment, counts in zip(segments, encode([s.patch for s in segments], frame.size), strict=True):
            mask = {"size": list(frame.size), "counts": counts}
            results.append({"image_id": number, "category_id": 1, "score": segment.score, "segmentation": mask})
    return results


def show(
    index: dict, name: str, masks: CenterOffsetMasks, found: list[tuple[Outputs, Frame]], threshold: float
) -> None:
    results = results_of(masks, found)
    figures = score(index, results, [result for result in results if result["score"] >= threshold])
    print(f"{name:<20} {figures.ap:>7.4f} {figures.ap50:>7.4f} {figures.ap75:>7.4f} {figures.dsb:>7.4f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.nuclei.tune", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with instances.json and images/")
    parser.add_argument("--weights", type=Path, default=Path("models/weights/nuclei.safetensors"))
    args = parser.parse_args()
    pictures = data.load(args.data, held_out=True)
    index = ground_truth(pictures)
    model = nuclei_unet()
    model.load_state_dict(load_file(args.weights))
    found = run(model.eval(), pictures)
    print(f"{len(pictures)} held-out pictures, {len(index['annotations'])} nuclei; as built: {model.masks!r}")
    print(f"{'change':<20} {'AP':>7} {'AP50':>7} {'AP75':>7} {'DSB':>7}")
    show(index, "as built", model.masks, found, model.score_threshold)
    for name, values in CHANGES.items():
        for value in values:
            if value != getattr(model.masks, name):
                changed = model.masks.model_copy(update={name: value})
                show(index, f"{name} {value:g}", changed, found, model.score_threshold)
    for threshold in THRESHOLDS:
        show(index, f"score {threshold:g}", model.masks, found, threshold)
    return 0


if __name__ == "__main__":
    sys.exit(main())
