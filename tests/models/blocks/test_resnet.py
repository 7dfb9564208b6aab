from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.blocks.deform_conv import DeformConv2d
from models.blocks.fpn import FPN
from models.blocks.norm import Affine, BatchNorm, GroupNorm
from models.blocks.resnet import BLOCKS, BasicBlock, Bottleneck, Deformable, ResNet, ResNetSpec, stage
from tests.models.blocks.exported import FREE, exported
from tests.shared_data import shared

TINY = ResNetSpec(blocks=(1, 2, 1, 2), stem_channels=8, middle=4, channels=16)
DC5 = replace(TINY, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))


def built(spec: ResNetSpec, seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(spec).eval()


def shapes(maps: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(x.shape[1:]) for x in maps]


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (TINY, [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]),
        (replace(TINY, stem="deep"), [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]),
        (replace(TINY, stride_in_1x1=True), [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]),
        (replace(TINY, groups=2, middle=8), [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]),
        (replace(TINY, deformable=Deformable((1, 3))), [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]),
        (replace(TINY, norm=Affine()), [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]),
        (replace(TINY, norm=GroupNorm(groups=2)), [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]),
        (replace(TINY, out=(2,)), [(64, 4, 6)]),
        (DC5, [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 4, 6)]),
        (replace(TINY, block=BasicBlock, channels=8), [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)]),
    ],
)
def test_every_option_gives_the_maps_it_promises(spec: ResNetSpec, expected: list[tuple[int, ...]]) -> None:
    model = built(spec)
    maps = model(torch.randn(2, 3, 64, 96))
    assert shapes(maps) == expected
    assert list(model.channels) == [c for c, _, _ in expected]
    assert list(model.strides) == [64 // h for _, h, _ in expected]


def test_sides_that_strides_do_not_divide_are_rounded_up() -> None:
    assert shapes(built(TINY)(torch.randn(1, 3, 65, 97))) == [(16, 17, 25), (32, 9, 13), (64, 5, 7), (128, 3, 4)]


@pytest.mark.parametrize(
    "other",
    [replace(TINY, stride_in_1x1=True), replace(TINY, norm=BatchNorm(eps=0.1)), replace(TINY, dilations=(1, 1, 1, 2))],
)
def test_options_that_no_weight_shows_change_the_numbers(other: ResNetSpec) -> None:
    """Two specs with the same tensors: only a comparison of numbers can tell them apart."""
    first, second = built(TINY), ResNet(other).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 64, 64)
    a, b = first(x)[-1], second(x)[-1]
    assert a.shape == b.shape
    assert (a - b).abs().max() > 1e-3 * a.std()


def test_where_the_stride_is() -> None:
    first, caffe = (Bottleneck(8, 4, 16, norm=BatchNorm(), stride=2, stride_in_1x1=where) for where in (False, True))
    assert [first.conv1.stride, first.conv2.stride] == [(1, 1), (2, 2)]
    assert [caffe.conv1.stride, caffe.conv2.stride] == [(2, 2), (1, 1)]


def test_batch_norm_is_its_formula_and_eps_counts_where_the_variance_is_small() -> None:
    x = torch.randn(2, 4, 3, 3)
    layer = BatchNorm(eps=1e-5)(4)
    tensors = {name: torch.rand(4) + 0.5 for name in ("weight", "bias", "running_mean")} | {
        "running_var": x.new_full((4,), 1e-4)
    }
    layer.load_state_dict(tensors)
    weight, bias, mean, variance = (
        tensors[name][:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
    )
    for mode in (True, False):
        expected = (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias
        assert torch.allclose(layer.train(mode)(x), expected, rtol=1e-4, atol=1e-3)
    bare = BatchNorm(eps=0.0)(4)
    bare.load_state_dict(tensors)
    assert torch.allclose(bare(x), (x - mean) / torch.sqrt(variance) * weight + bias, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(bare(x), layer(x), rtol=1e-2)


def test_a_batch_norm_worked_into_its_weights_is_the_same_and_has_no_statistics() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, 3, generator=generator)
    tensors = {name: torch.rand(4, generator=generator) + 0.5 for name in ("weight", "bias", "running_mean")}
    tensors["running_var"] = torch.rand(4, generator=generator) + 0.1
    whole, bare = BatchNorm(eps=0.0)(4), Affine()(4)
    whole.load_state_dict(tensors)
    factor = tensors["weight"] / torch.sqrt(tensors["running_var"])
    bare.load_state_dict({"weight": factor, "bias": tensors["bias"] - tensors["running_mean"] * factor})
    assert torch.allclose(bare(x), whole(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(bare.train()(x), bare.eval()(x))
    assert {name.rpartition(".")[2] for name in built(replace(TINY, norm=Affine())).state_dict()} == {"weight", "bias"}


def test_resnext_groups_make_the_kernels_thinner() -> None:
    spec = ResNetSpec(blocks=BLOCKS[101], middle=32 * 8, groups=32, out=(0,))
    shape = ResNet(spec).state_dict()["stages.0.0.conv2.weight"].shape
    assert shape == (256, 8, 3, 3)  # ResNeXt-101 32x8d


def test_deformable_stages_and_no_others() -> None:
    model = built(replace(TINY, deformable=Deformable(stages=(2, 3), groups=2, modulated=False)))
    found = [name for name, layer in model.named_modules() if isinstance(layer, DeformConv2d)]
    assert found == ["stages.2.0.conv2", "stages.3.0.conv2", "stages.3.1.conv2"]
    assert model.state_dict()["stages.3.0.conv2.offset.weight"].shape == (36, 32, 3, 3)


def test_deformable_convolutions_that_move_nothing_are_ordinary() -> None:
    plain, deformable = built(DC5), ResNet(replace(DC5, deformable=Deformable((1, 2, 3), modulated=False))).eval()
    missing, unexpected = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert {name.rsplit(".", 2)[1] for name in missing} == {"offset"}
    assert not unexpected
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(plain(x), deformable(x), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_basic_block_refuses_what_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="use Bottleneck"):
        ResNet(replace(TINY, block=BasicBlock, channels=8, groups=2))


def test_a_stage_stands_alone_and_stages_that_nobody_asks_for_are_not_built() -> None:
    whole, c4 = built(TINY), built(replace(TINY, out=(2,)))
    assert len(c4.stages) == 3
    head = stage(TINY, 3).eval()
    head.load_state_dict(whole.stages[3].state_dict())
    x = torch.randn(1, 3, 64, 64)
    maps = whole(x)
    assert torch.equal(head(maps[2]), maps[3])
    c4.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("stages.3")})
    assert torch.equal(c4(x)[0], maps[2])


def test_usual_depths_have_the_published_number_of_weights() -> None:
    """Millions, with the classifier of 1000 classes that ours lacks."""
    for depth, published in ((50, 25.557), (101, 44.549)):
        model = ResNet(ResNetSpec(blocks=BLOCKS[depth]))
        count = sum(weight.numel() for weight in model.parameters()) + 2048 * 1000 + 1000
        assert round(count / 1e6, 3) == published


def test_a_graph_of_backbone_and_pyramid_is_free_in_batch_height_and_width() -> None:
    """Every kind of layer at once; run at other batches and sizes than it was traced with."""
    spec = replace(TINY, stem="deep", groups=2, middle=8, deformable=Deformable((2,)), norm=GroupNorm(groups=2))
    backbone, pyramid = built(spec), FPN((16, 32, 64, 128), 12, norm=BatchNorm()).eval()
    for name, weight in backbone.named_parameters():
        if "offset" in name:
            torch.nn.init.normal_(weight, std=0.05)

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.pyramid = backbone, pyramid

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.pyramid(self.backbone(x)))

    height, width = torch.export.Dim("h", min=1, max=40), torch.export.Dim("w", min=1, max=40)
    run, _ = exported(Both(), (torch.randn(2, 3, 64, 96),), [{0: FREE, 2: 32 * height, 3: 32 * width}])
    for size in ((1, 3, 96, 64), (3, 3, 64, 160)):
        x = torch.randn(size)
        for ours, theirs in zip(pyramid(backbone(x)), run(x), strict=True):
            assert ours.shape == theirs.shape
            assert np.abs(ours.numpy() - theirs).max() < 1e-4 * float(ours.std())


def detectron2_name(key: str) -> str:
    """Its names to ours, for the test below; the dialects have the rules that count."""
    key = re.sub(r"^backbone\.(bottom_up\.)?", "", key)
    key = re.sub(r"^stem\.conv1\.norm", "stem.layers.0.norm", re.sub(r"^stem\.conv1\.w", "stem.layers.0.conv.w", key))
    key = re.sub(r"^res(\d)\.", lambda match: f"stages.{int(match[1]) - 2}.", key)
    return (
        re.sub(r"conv(\d)\.norm", r"norm\1", key)
        .replace("shortcut.w", "shortcut.conv.w")
        .replace("conv2_offset", "conv2.offset")
    )


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("d2_mask_rcnn_R_50_C4", ResNetSpec(out=(2,))),
        ("d2_mask_rcnn_R_50_DC5", ResNetSpec(out=(3,), strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))),
        ("d2_mask_rcnn_R_50_FPN_dconv", ResNetSpec(deformable=Deformable((1, 2, 3), modulated=False))),
    ],
)
def test_reference_features_come_out(case: str, options: ResNetSpec) -> None:
    """detectron2's own numbers; one eps, stride or offset order elsewhere is a hundred times the tolerance."""
    tensors = load_file(shared(f"golden/{case}/a.safetensors"))
    backbone = ResNet(replace(options, stem_channels=8, middle=4, channels=16, stride_in_1x1=True)).eval()
    weights = {detectron2_name(k[3:]): v for k, v in tensors.items() if k.startswith("sd/backbone.")}
    pyramid = {k: v for k, v in weights.items() if k.startswith("fpn_")}
    backbone.load_state_dict({k: v for k, v in weights.items() if k not in pyramid})
    picture = tensors["in/image_u8"].permute(2, 0, 1)[None].float().flip(1)  # blue, green, red
    maps = backbone(picture - torch.tensor([103.53, 116.28, 123.675])[:, None, None])
    if pyramid:
        fpn = FPN(backbone.channels, 16).eval()
        renamed = {
            re.sub(r"fpn_(\w+)([2-5])\.", lambda m: f"{m[1]}s.{int(m[2]) - 2}.conv.", k): v for k, v in pyramid.items()
        }
        fpn.load_state_dict(renamed)
        maps = fpn(maps)
    expected = [tensors[key] for key in sorted(tensors) if key.startswith("raw/backbone#0.")]
    for ours, theirs in zip(maps, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.std()
