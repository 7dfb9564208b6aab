"""fp16 in PyTorch: which modules take it, which are put back, and what the graph then holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch

from export.errors import ExportError
from export.graph import write_graph
from export.parity import inputs_for, run_model
from export.precision.half import find_half, to_half
from export.precision.parts import parts_of
from export.source import Exportable, build
from server.engines import load_engine
from tests.export.precision.networks import Weak, batch, weak_offset, weak_overflow

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def parts(name: str) -> list[str]:
    model = build(name)
    inputs = inputs_for(model.input, 1, 1)
    assert isinstance(model, torch.nn.Module)
    return parts_of(model, torch.from_numpy(inputs["images"]), torch.from_numpy(inputs["sizes"]))


def test_the_largest_modules_that_only_convolve_and_add_are_found_by_what_they_do() -> None:
    assert parts("models.unet:unet_tiny") == ["unet.down.0", "unet.down.1", "unet.up.0", "unet.head"]
    found = parts("models.mask_rcnn:mask_rcnn_tiny")
    assert found == ["backbone", "neck", "rpn.head", "box_head", "box_predictor", "mask_head"]


def test_half_weights_lie_in_the_file_and_pictures_and_answers_stay_as_they_were(tmp_path: Path) -> None:
    model = build("models.unet:unet_tiny")
    write_graph(find_half(model, [batch()]).model, tmp_path / "fp16.onnx")
    graph = onnx.load(tmp_path / "fp16.onnx")
    sizes = Counter[int]()
    for tensor in graph.graph.initializer:
        sizes[tensor.data_type] += int(np.prod(tensor.dims))
    assert sizes[HALF] > 0.98 * (sizes[HALF] + sizes[FLOAT])
    assert [v.type.tensor_type.elem_type for v in graph.graph.output] == [FLOAT, FLOAT]
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    engine = load_engine(tmp_path / "fp16.onnx", 1)
    wanted = run_model(model, batch())
    for name, tensor in engine.run(batch()).items():
        np.testing.assert_allclose(tensor, wanted[name], atol=0.05)
    engine.close()


def test_the_model_that_was_given_stays_in_fp32() -> None:
    model = build("models.unet:unet_tiny")
    lowered = to_half(model, ["unet.head"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    assert {p.dtype for p in lowered.unet.head.parameters()} == {torch.float16}  # type: ignore[attr-defined]


def test_a_network_whose_spec_cannot_be_copied_is_lowered_all_the_same() -> None:
    model = build("models.mask_rcnn:mask_rcnn_tiny")
    lowered = to_half(model, ["backbone", "rpn.head"])
    found = {name: p.dtype for name, p in lowered.named_parameters()}  # type: ignore[attr-defined]
    assert {dtype for name, dtype in found.items() if name.startswith("backbone.")} == {torch.float16}
    assert found["neck.laterals.0.conv.weight"] == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    assert lowered.spec is model.spec  # type: ignore[attr-defined]


def test_a_module_whose_numbers_overflow_becomes_an_island() -> None:
    found = find_half(weak_overflow(), [batch()])
    assert set(found.islands) == {"middle", "head"}  # one makes such numbers, the other takes them
    assert "range" in found.islands["middle"]
    assert found.parts == ["first"]
    assert found.distance < 0.01
    everything = to_half(weak_overflow(), ["first", "middle", "head"])
    assert not all(np.isfinite(tensor).all() for tensor in run_model(everything, batch()).values())


def test_a_norm_whose_statistics_overflow_is_known_before_anything_is_tried() -> None:
    network = Weak()
    norm = torch.nn.BatchNorm2d(8)
    torch.nn.init.constant_(norm.weight, 1000.0)
    torch.nn.init.constant_(norm.running_var, 1e6)  # type: ignore[arg-type]
    network.middle = torch.nn.Sequential(network.middle, norm)  # type: ignore[assignment]
    found = find_half(cast(Exportable, network.eval()), [batch()])
    assert found.parts == ["first", "middle.0", "head"]
    assert not found.measured  # nothing came too far, so no part was tried alone


def test_a_module_that_costs_too_much_is_put_back_with_what_it_cost() -> None:
    found = find_half(weak_offset(), [batch()], bound=0.01)
    assert list(found.islands) == ["head"]
    assert found.measured["head"] > 0.01 > found.measured["first"]
    assert found.distance <= 0.01


def test_a_network_that_cannot_is_refused() -> None:
    with pytest.raises(ExportError, match="--precision fp32"):
        find_half(weak_overflow(), [batch()], bound=0.0)
