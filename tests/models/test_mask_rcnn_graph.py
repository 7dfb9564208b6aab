"""The laws that every graph of Mask R-CNN keeps, held with ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from export.graph import write_graph
from export.laws import axes_of
from export.source import Exportable
from models.blocks.resnet import ResNetSpec
from models.dialects import detectron2, published
from models.mask_rcnn import MaskRCNN, mask_rcnn_tiny
from server.agreement import in_units, largest_errors
from server.engines import Engine, load_engine
from server.preprocess import ShortestEdgeInput
from tests.models.trained import trained

Tensors = dict[str, NDArray]
EMPTY = (0, 0)  # a picture without pixels, in which nothing can be found


def graph_of(model: MaskRCNN, path: Path) -> Engine:
    """Exported and opened; `write_graph` refuses operators whose shapes depend on data, and a batch axis that is not
    free."""
    write_graph(cast(Exportable, model), path)
    return load_engine(path, threads=1)


def inputs(size: tuple[int, int], *contents: tuple[int, int]) -> Tensors:
    """One picture of noise for every content, all in one batch of `size`."""
    generator = np.random.default_rng(size[0] * len(contents))
    images = generator.integers(0, 256, (len(contents), *size, 3), dtype=np.uint8)
    return {"images": images, "sizes": np.array(contents, np.int32)}


def eager(model: MaskRCNN, given: Tensors) -> Tensors:
    with torch.inference_mode():
        answer = model(torch.from_numpy(given["images"]), torch.from_numpy(given["sizes"]))
    return {name: tensor.numpy() for name, tensor in answer.items()}


def assert_rows_alone_are_the_same(engine: Engine, given: Tensors) -> None:
    together = engine.run(given)
    for i in range(len(given["sizes"])):
        alone = engine.run({name: tensor[i : i + 1] for name, tensor in given.items()})
        for name, tensor in together.items():
            np.testing.assert_array_equal(tensor[i], alone[name][0], err_msg=f"{name} of row {i}")


def assert_equals_pytorch(model: MaskRCNN, engine: Engine, given: Tensors) -> None:
    errors = largest_errors(engine.run(given), eager(model, given), model.masks.legend)
    assert in_units(errors)[1] < 1e-3, errors


@pytest.fixture(scope="module")
def tiny() -> MaskRCNN:
    return trained(mask_rcnn_tiny())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny") / "model.onnx"


@pytest.fixture(scope="module")
def engine(tiny: MaskRCNN, path: Path) -> Iterator[Engine]:
    engine = graph_of(tiny, path)
    yield engine
    engine.close()


def test_only_the_batch_is_free_in_what_comes_out(engine: Engine, path: Path) -> None:
    graph = onnx.load(path).graph
    for value in graph.output:
        batch, *others = axes_of(value)
        assert isinstance(batch, str)
        assert all(isinstance(axis, int) for axis in others), value.name
    assert graph.node[0].op_type == "Cast" or "Cast" in {node.op_type for node in graph.node if "images" in node.input}


@pytest.mark.parametrize("size", [(96, 128), (160, 96)])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_rows_equal_their_picture_alone_and_pytorch(
    tiny: MaskRCNN, engine: Engine, size: tuple[int, int], batch: int
) -> None:
    """Of unequal pictures, at sizes that it was not traced with: one where a level's stride is not its own, too."""
    contents = [(size[0] - 13 * i, size[1] - 7 * i) for i in range(batch)]
    given = inputs(size, *contents)
    assert_rows_alone_are_the_same(engine, given)
    assert_equals_pytorch(tiny, engine, given)


def test_a_picture_without_detections_and_one_with_too_many_share_a_batch(tiny: MaskRCNN, engine: Engine) -> None:
    given = inputs((96, 128), EMPTY, (96, 128), (1, 1), EMPTY)
    answer = engine.run(given)
    assert (
        (answer["scores"] > 0).sum(axis=1) == [0, tiny.spec.detection.rows, *(answer["scores"][2:] > 0).sum(axis=1)]
    ).all()
    assert not answer["boxes"][0].any()
    assert (answer["scores"][[0, 3]] == -1).all()
    assert_rows_alone_are_the_same(engine, given)
    assert_equals_pytorch(tiny, engine, given)


def test_nothing_at_all_is_found_and_the_session_goes_on(tiny: MaskRCNN, engine: Engine) -> None:
    assert (engine.run(inputs((64, 64), EMPTY))["scores"] == -1).all()
    assert_equals_pytorch(tiny, engine, inputs((64, 64), (64, 64)))


def test_what_lies_beyond_a_picture_does_not_matter(engine: Engine) -> None:
    given = inputs((96, 128), (70, 101))
    other = {**given, "images": given["images"].copy()}
    other["images"][0, 70:] = 255
    other["images"][0, :, 101:] = 9
    for name, tensor in engine.run(given).items():
        np.testing.assert_array_equal(tensor, engine.run(other)[name])


@pytest.mark.proof
def test_a_graph_may_take_one_size_only(tmp_path: Path) -> None:
    model = trained(mask_rcnn_tiny(input_size=(64, 96)))
    engine = graph_of(model, tmp_path / "model.onnx")
    given = inputs((64, 96), (64, 96), (50, 33), EMPTY)
    assert_rows_alone_are_the_same(engine, given)
    assert_equals_pytorch(model, engine, given)
    images, *_ = onnx.load(tmp_path / "model.onnx").graph.input
    assert axes_of(images)[1:] == [64, 96, 3]
    engine.close()


def small(config: dict) -> MaskRCNN:
    """A model of detectron2's, narrow."""
    spec = detectron2.spec(config)

    def narrow(resnet: ResNetSpec) -> ResNetSpec:
        return replace(resnet, blocks=(1, 1, 1, 1), stem_channels=8, middle=4, channels=16)

    spec = replace(
        spec,
        colours=replace(spec.colours, std=(58.0, 57.0, 57.0)),
        backbone=narrow(spec.backbone),
        neck=spec.neck and replace(spec.neck, channels=8),
        shared_stage=spec.shared_stage and narrow(spec.shared_stage),
        rpn=replace(spec.rpn, before_nms=50, after_nms=30, proposals=30),
        box_head=replace(spec.box_head, layers=(16,) * len(spec.box_head.layers)),
        mask_head=replace(spec.mask_head, convs=(8,) * len(spec.mask_head.convs), width=8),
        detection=replace(spec.detection, rows=12),
    )
    rule = ShortestEdgeInput(short_side=96, long_side=160, multiple=spec.multiple)
    return trained(MaskRCNN(spec, ("blob", "ring"), rule))


@pytest.mark.proof
@pytest.mark.parametrize(
    "config", [published.detectron2_c4(2), published.detectron2_dc5(2), published.detectron2_deformable(2)]
)
def test_other_shapes_of_the_network_keep_the_laws(config: dict, tmp_path: Path) -> None:
    model = small(config)
    engine = graph_of(model, tmp_path / "model.onnx")
    size = (96, 128) if model.spec.multiple == 32 else (75, 101)  # C4 and DC5 pad to nothing
    given = inputs(size, size, (size[0] - 11, size[1] - 40), EMPTY)
    assert (engine.run(given)["scores"][0] > 0).any()
    assert_rows_alone_are_the_same(engine, given)
    assert_equals_pytorch(model, engine, given)
    engine.close()
