"""What holds for every representation, and for legends."""

from __future__ import annotations

import numpy as np
import pytest

from server.errors import ShapeMismatch
from server.masks import CenterOffsetMasks, Masks, bind

EVERY = Masks.__subclasses__()


@pytest.mark.parametrize("kind", EVERY)
def test_every_representation_says_its_kind_and_its_tensors_and_refuses_unknown_parameters(kind: type[Masks]) -> None:
    masks = kind(kind=kind.model_fields["kind"].default)
    assert kind.legend
    assert kind.model_validate_json(masks.model_dump_json()) == masks
    with pytest.raises(ValueError, match="extra"):
        kind.model_validate({"no_such_parameter": 1})


def test_a_legend_binds_letters_to_lengths() -> None:
    outputs = {"inside": np.zeros((5, 7)), "offsets": np.zeros((2, 5, 7))}
    assert bind(outputs, CenterOffsetMasks.legend) == {"h": 5, "w": 7}


@pytest.mark.parametrize(
    "outputs",
    [
        {"inside": np.zeros((5, 7))},
        {"inside": np.zeros((5, 7)), "offsets": np.zeros((3, 5, 7))},
        {"inside": np.zeros((5, 7)), "offsets": np.zeros((2, 5, 8))},
        {"inside": np.zeros((1, 5, 7)), "offsets": np.zeros((2, 5, 7))},
        {"inside": np.zeros((5, 7)), "offsets": np.zeros((2, 5, 7)), "more": np.zeros(1)},
    ],
)
def test_other_shapes_or_names_are_refused(outputs: dict) -> None:
    with pytest.raises(ShapeMismatch, match="should be"):
        bind(outputs, CenterOffsetMasks.legend)
