"""A model without training that finds something all the same."""

from __future__ import annotations

import torch
from torch import nn

from models.mask_rcnn import MaskRCNN


def trained(model: MaskRCNN, seed: int = 0) -> MaskRCNN:
    """Random weights under which boxes move, classes are told apart and masks have an edge; ready to infer."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5, generator=generator)
    small = ((model.rpn.head.logits, 0.1), (model.rpn.head.deltas, 0.05), (model.mask_head.logits, 0.1))
    for layer, gain in (*small, (model.box_predictor.scores, 0.1), (model.box_predictor.deltas, 0.05)):
        nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5, generator=generator)
    return model.eval()
