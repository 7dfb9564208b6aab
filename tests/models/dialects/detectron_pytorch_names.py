"""What Detectron.pytorch calls the weights of `generalized_rcnn`, and their shapes, written down from its own modules
(lib/modeling/{ResNet,FPN,fast_rcnn_heads,mask_rcnn_heads}.py) and not from our rules.

No list of a full-size model was recorded. That this one is right, and where, is seen on a recorded state dict of PANet,
a fork that kept all names but those of the two heads: `tests/models/dialects/test_detectron_pytorch.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Widths:
    """Channels; those of R50-FPN unless told."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stem: int = 64
    middle: int = 64  # of the second stage's 3x3 convolutions, all groups together
    groups: int = 1
    stage: int = 256  # of the second stage's output
    pyramid: int = 256
    hidden: int = 1024
    mask: int = 256
    classes: int = 81  # with the background
    pyramid_norm: bool = False


def state_of(widths: Widths) -> dict[str, Shape]:
    """Every weight by its name."""
    return {**body(widths), **rpn(widths), **heads(widths), **outputs(widths)}


def body(widths: Widths) -> dict[str, Shape]:
    """`Conv_Body`: the ResNet, and the pyramid with its levels from the coarsest on."""
    return {f"Conv_Body.{name}": shape for part in (_resnet(widths), _pyramid(widths)) for name, shape in part}


def rpn(widths: Widths) -> dict[str, Shape]:
    wide = widths.pyramid
    return dict(
        [
            *_biased("RPN.FPN_RPN_conv", (wide, wide, 3, 3)),
            *_biased("RPN.FPN_RPN_cls_score", (3, wide, 1, 1)),
            *_biased("RPN.FPN_RPN_bbox_pred", (12, wide, 1, 1)),
        ]
    )


def heads(widths: Widths) -> dict[str, Shape]:
    """`roi_2mlp_head` and four convolutions; a ReLU after each has a number too."""
    wide, hidden, mask = widths.pyramid, widths.hidden, widths.mask
    return dict(
        [
            *_biased("Box_Head.fc1", (hidden, wide * 7 * 7)),
            *_biased("Box_Head.fc2", (hidden, hidden)),
            *_biased("Mask_Head.conv_fcn.0", (mask, wide, 3, 3)),
            *(pair for i in (2, 4, 6) for pair in _biased(f"Mask_Head.conv_fcn.{i}", (mask, mask, 3, 3))),
            *upconv(widths).items(),
        ]
    )


def upconv(widths: Widths) -> dict[str, Shape]:
    return dict(_biased("Mask_Head.upconv", (widths.mask, widths.mask, 2, 2)))


def outputs(widths: Widths) -> dict[str, Shape]:
    return dict(
        [
            *_biased("Box_Outs.cls_score", (widths.classes, widths.hidden)),
            *_biased("Box_Outs.bbox_pred", (4 * widths.classes, widths.hidden)),
            *_biased("Mask_Outs.classify", (widths.classes, widths.mask, 1, 1)),
        ]
    )


def _resnet(widths: Widths) -> Iterator[tuple[str, Shape]]:
    """Norms have a weight and a bias and nothing else."""
    yield "conv_body.res1.conv1.weight", (widths.stem, 3, 7, 7)
    yield from _pair("conv_body.res1.bn1", widths.stem)
    before = widths.stem
    for stage, blocks in enumerate(widths.blocks):
        middle, after = widths.middle << stage, widths.stage << stage
        for block in range(blocks):
            name = f"conv_body.res{stage + 2}.{block}"
            yield f"{name}.conv1.weight", (middle, before, 1, 1)
            yield f"{name}.conv2.weight", (middle, middle // widths.groups, 3, 3)
            yield f"{name}.conv3.weight", (after, middle, 1, 1)
            for norm, width in (("bn1", middle), ("bn2", middle), ("bn3", after)):
                yield from _pair(f"{name}.{norm}", width)
            if not block:
                yield f"{name}.downsample.0.weight", (after, before, 1, 1)
                yield from _pair(f"{name}.downsample.1", after)
            before = after


def _pyramid(widths: Widths) -> Iterator[tuple[str, Shape]]:
    wide = widths.pyramid
    laterals = ("conv_top", *(f"topdown_lateral_modules.{i}.conv_lateral" for i in range(3)))
    layers = [(name, (wide, widths.stage << (3 - i), 1, 1)) for i, name in enumerate(laterals)]
    layers += [(f"posthoc_modules.{i}", (wide, wide, 3, 3)) for i in range(4)]
    for name, shape in layers:
        if widths.pyramid_norm:
            yield f"{name}.0.weight", shape
            yield from _pair(f"{name}.1", wide)
        else:
            yield from _biased(name, shape)


def _biased(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", (shape[1] if name.endswith("upconv") else shape[0],)


def _pair(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
