"""Train the bundled nuclei model: `python -m training.nuclei --data ../shared/data/nuclei`."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import torch
from safetensors.torch import save_file

from models.unet import nuclei_unet
from training.nuclei import data
from training.nuclei.train import train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.nuclei", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with instances.json and images/")
    parser.add_argument("--out", type=Path, default=Path("runs/nuclei"), help="checkpoints; an unfinished run resumes")
    parser.add_argument("--steps", type=int, default=7000, help="optimiser steps of 8 crops (default 7000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    cv2.setNumThreads(1)
    pictures = data.load(args.data, held_out=False)
    print(f"{len(pictures)} pictures for training", flush=True)
    model = nuclei_unet()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters", flush=True)
    model.unet = train(model.unet, pictures, args.out, args.steps, args.seed)
    weights = args.out / "nuclei.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    print(f"wrote {weights}; export it: python -m export models.unet:nuclei_unet --weights {weights} --out ...")


if __name__ == "__main__":
    main()
