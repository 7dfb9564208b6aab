"""Weights into a module, or exactly why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.weights import CheckpointError, load_into, rename

RULES = ((r"body\.(\w+)", r"0.\1"), (r"head\.(\d)\.(\w+)", r"\1.\2"), (r"body\.weight", "never"))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))


def own(module: nn.Module, name: str) -> torch.Tensor:
    return module.state_dict()[name]


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"body.weight": (3, 2), "body.bias": (3,), "head.1.weight": (4, 3), "head.1.bias": (4,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def refusal(tensors: dict[str, torch.Tensor], module: nn.Module | None = None, **rules: object) -> str:
    module = module or network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError) as refused:
        load_into(module, tensors, RULES, **rules)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    return str(refused.value)


def test_the_first_rule_that_matches_in_full_names_a_weight() -> None:
    found = rename(["body.weight", "xbody.weight", "head.1.bias", "other"], RULES)
    assert found == {
        "body.weight": "0.weight",
        "xbody.weight": "xbody.weight",
        "head.1.bias": "1.bias",
        "other": "other",
    }


def test_every_weight_arrives() -> None:
    module = network()
    fitted = load_into(module, weights(), RULES)
    assert fitted.loaded == 4
    assert torch.equal(own(module, "0.weight"), weights()["body.weight"])
    assert torch.equal(own(module, "1.bias"), weights()["head.1.bias"])


def test_half_precision_becomes_the_modules_own() -> None:
    module = network()
    load_into(module, {name: tensor.half() for name, tensor in weights().items()}, RULES)
    assert own(module, "0.weight").dtype == torch.float32
    assert torch.equal(own(module, "0.weight"), weights()["body.weight"].half().float())


def test_what_nobody_needs_is_left_out_and_told_with_its_reason() -> None:
    extra = weights() | {"bn.num_batches_tracked": torch.tensor(1), "pixel_mean": torch.ones(3)}
    ignored = ((r".*\.num_batches_tracked", "counts steps"), (r"pixel_\w+", "the configuration tells it"))
    fitted = load_into(network(), extra, RULES, ignored)
    assert fitted.ignored == {
        "counts steps": ("bn.num_batches_tracked",),
        "the configuration tells it": ("pixel_mean",),
    }


def test_a_counter_of_steps_may_be_missing() -> None:
    module = nn.BatchNorm2d(2)
    state = {name: tensor for name, tensor in module.state_dict().items() if name != "num_batches_tracked"}
    assert load_into(nn.Sequential(module), {f"0.{name}": tensor for name, tensor in state.items()}).loaded == 4


def test_missing_unexpected_and_reshaped_names_are_all_told() -> None:
    state = weights()
    state["other"] = state.pop("body.bias")
    state["head.1.weight"] = torch.zeros(5, 3)
    said = refusal(state)
    assert "the network has 4 weights, the checkpoint 4" in said
    assert "1 missing (0.bias)" in said
    assert "1 unexpected (other)" in said
    assert "1 of another shape (head.1.weight (1.weight): expected (4, 3), found (5, 3))" in said
    assert "\n" not in said


def test_the_first_dozen_of_many_is_listed_and_all_are_counted() -> None:
    said = refusal(weights() | {f"extra.{i:02}": torch.ones(1) for i in range(30)})
    assert "30 unexpected" in said
    assert [f"    extra.{i:02}" in said for i in range(30)] == [True] * 12 + [False] * 18
    assert "... and 18 more" in said


def test_two_names_for_one_weight_are_refused() -> None:
    assert "1 there twice (0.weight from body.weight and 0.weight)" in refusal(
        weights() | {"0.weight": torch.ones(3, 2)}
    )


def test_whole_numbers_where_others_belong_are_refused() -> None:
    state = weights()
    state["body.bias"] = torch.zeros(3, dtype=torch.int64)
    assert "1 of another kind of number" in refusal(state)


def test_a_weight_shown_from_one_number_is_copied() -> None:
    state = {name: torch.ones(()).expand(tensor.shape) for name, tensor in weights().items()}
    module = network()
    load_into(module, state, RULES)
    assert own(module, "0.weight").is_contiguous()
    assert own(module, "0.weight").eq(1).all()
