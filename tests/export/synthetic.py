"""Checkpoints that nobody trained, of full size: the keys and shapes of a code base with seeded numbers in them.

Numbers are chosen so that the network says something: variances are kept through the layers, residual branches add a
little to their trunk, and the class logits spread far enough that dozens of boxes pass the threshold.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

TRUNK = 0.3  # gain of a residual branch's last convolution
CLASSES = 2.0  # gain of the class logits, which should spread and not saturate


def synthetic(keys: Path, seed: int = 0) -> dict[str, Tensor]:
    """A state dict from a list of `key -> [dtype, shape]`, as lies in `golden/_keys`."""
    listed: dict[str, tuple[str, list[int]]] = json.loads(keys.read_text())["keys"]
    generator = torch.Generator().manual_seed(seed)
    return {key: _tensor(key, getattr(torch, dtype), shape, generator) for key, (dtype, shape) in listed.items()}


def _tensor(key: str, dtype: torch.dtype, shape: list[int], generator: torch.Generator) -> Tensor:
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    name = key.rpartition(".")[2]
    if name == "running_var" or (name == "weight" and len(shape) == 1):
        return torch.ones(shape, dtype=dtype)
    if len(shape) < 2:
        return torch.randn(shape, generator=generator, dtype=dtype) * 0.02
    inputs = math.prod(shape[1:])
    gain = math.sqrt(2.0)
    if ".conv3." in key or "downsample" in key or "shortcut" in key:
        gain = TRUNK if ".conv3." in key else 1.0
    if "cls_score" in key or "fc_cls" in key:
        gain = CLASSES
    if "bbox_pred" in key or "fc_reg" in key:
        gain = 0.5
    values = torch.randn(shape, generator=generator, dtype=dtype) * (gain / math.sqrt(inputs))
    return values - values.mean(dim=tuple(range(1, len(shape))), keepdim=True)  # what all features share says nothing
