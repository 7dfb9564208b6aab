"""Our operators in ONNX: what `torch.onnx.export(..., custom_translation_table=TRANSLATIONS)` writes for each.

Operators that PyTorch lacks run in eager mode as the plain PyTorch code beside them, and become nodes of a graph by the
functions listed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from models.blocks.deform_conv import deform_conv2d_to_onnx
from models.blocks.nms import nms_keep_to_onnx
from models.blocks.roi_align import roi_align_to_onnx

TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.maskserve.roi_align.default: roi_align_to_onnx,
    torch.ops.maskserve.nms_keep.default: nms_keep_to_onnx,
    torch.ops.maskserve.deform_conv2d.default: deform_conv2d_to_onnx,
}
