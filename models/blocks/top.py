"""The best so many, where there may be fewer: a fixed number of rows whatever the input's size."""

from __future__ import annotations

import torch
from torch import Tensor

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
    values, indices = torch.cat([scores, padding.expand(*scores.shape[:-1], count)], dim=-1).topk(count)
    return values, indices.clamp(max=scores.shape[-1] - 1)


def pick(rows: Tensor, indices: Tensor) -> Tensor:
    """(..., N, 4) and (..., count) to (..., count, 4)."""
    return rows.gather(-2, indices[..., None].expand(*indices.shape, rows.shape[-1]))
