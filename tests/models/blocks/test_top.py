from __future__ import annotations

import torch

from models.blocks.top import best, pick


def test_rows_are_filled_up_where_there_are_too_few() -> None:
    values, indices = best(torch.tensor([[0.5, 2.0, 1.0]]), 5, -1.0)
    assert values.tolist() == [[2.0, 1.0, 0.5, -1.0, -1.0]]
    assert indices[0, :3].tolist() == [1, 2, 0]
    assert indices.max() <= 2  # whatever they mean, something is there


def test_the_best_are_picked() -> None:
    rows = torch.arange(12.0).reshape(1, 3, 4)
    _, indices = best(torch.tensor([[0.0, 3.0, 2.0]]), 2, -1.0)
    assert pick(rows, indices).tolist() == [[[4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0]]]


def test_a_long_list_is_taken_in_parts() -> None:
    """TensorRT gives no more than 3839 rows at a time; detectron2's C4 wants 6000."""
    scores = torch.randperm(9000, generator=torch.Generator().manual_seed(0)).to(torch.float32)[None]
    values, indices = best(scores, 8000, -1e30)
    wanted = scores.topk(8000)
    assert torch.equal(values, wanted.values)
    assert torch.equal(indices, wanted.indices)
    values, indices = best(scores[:, :5000], 6000, -1.0)
    assert torch.equal(values[:, :5000], scores[:, :5000].sort(descending=True).values)
    assert (values[:, 5000:] == -1.0).all()
    assert indices.max() < 5000
