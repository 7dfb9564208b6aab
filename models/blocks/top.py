"""The best so many, where there may be fewer: a fixed number of rows whatever the input's size."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_TOPK = 3839  # rows that TensorRT's operator gives at most
UNUSED = -1e30  # ranks below every logit; finite, so that arithmetic on it stays finite


def best(scores: Tensor, count: int, nothing: float) -> tuple[Tensor, Tensor]:
    """
    Args:
        scores: (..., N), N may be free in an exported graph.
        nothing: the score of a row that there is no candidate for; no greater than any score.

    Returns:
        Scores (..., count), best first, and their indices (..., count) int64; rows without a candidate have an index
        all the same, of one that need not mean anything.
    """
    padding = torch.full((count,), nothing, dtype=scores.dtype, device=scores.device)
    padded = torch.cat([scores, padding.expand(*scores.shape[:-1], count)], dim=-1)  # (..., N + count)
    values, indices = _in_parts(padded, count, nothing)
    return values, indices.clamp(max=scores.shape[-1] - 1)


def _in_parts(scores: Tensor, count: int, nothing: float) -> tuple[Tensor, Tensor]:
    """`topk` for any count. What a part has taken ranks behind everything else in the next."""
    if count <= LARGEST_TOPK:
        return scores.topk(count)
    values, indices = scores.topk(LARGEST_TOPK)
    taken = torch.full((1,), 2.0 * nothing - 1.0, dtype=scores.dtype, device=scores.device)
    left = scores.scatter(-1, indices, taken.expand(indices.shape))
    more = _in_parts(left, count - LARGEST_TOPK, nothing)
    return torch.cat([values, more[0]], dim=-1), torch.cat([indices, more[1]], dim=-1)


def pick(rows: Tensor, indices: Tensor) -> Tensor:
    """(..., N, 4) and (..., count) to (..., count, 4)."""
    return rows.gather(-2, indices[..., None].expand(*indices.shape, rows.shape[-1]))
