"""How far two answers of a model lie apart: an engine against the golden sample, a graph against PyTorch.

Rows of candidates are a ranking. Two runtimes that differ by rounding may swap two rows whose scores are nearly equal,
and say different things in rows that are unused. So rows are first laid beside those that mean the same object, by
label and box, and rows that neither side uses do not count:

    wanted   cell 0.91 at (3, 4)    cell 0.52 at (9, 9)     unused
    found    cell 0.52 at (9, 9)    cell 0.91 at (3, 4)     unused          no difference

Errors are absolute. What is allowed is a share of each output's unit: a thousandth of a probability is much, a
thousandth of a pixel is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNITS = {"boxes": 50.0, "vertices": 50.0, "mask_logits": 10.0}  # pixels, pixels, logits; 1 for all others
MEANING = ("boxes", "scores", "labels")  # what tells a row from the others
ELSEWHERE = 1e6  # pixels: farther than any box, for candidates of another label

Batch = Mapping[str, NDArray[Any]]


def largest_errors(found: Batch, wanted: Batch, legend: Mapping[str, str]) -> dict[str, float]:
    """Of every output the largest absolute difference, infinite where shapes differ or a number is not finite.

    Args:
        found, wanted: outputs of one batch, each (B, ...), under the names of the legend.
        legend: of the mask representation; it tells which outputs have a row for every candidate.
    """
    if set(found) != set(wanted) or any(found[name].shape != wanted[name].shape for name in wanted):
        return dict.fromkeys(wanted, np.inf)
    if not set(MEANING) <= set(wanted):
        return {name: _largest(found[name], wanted[name]) for name in wanted}
    errors = dict.fromkeys(wanted, 0.0)
    for i in range(len(wanted["scores"])):
        order = _partners(*({name: side[name][i] for name in MEANING} for side in (found, wanted)))
        used = (wanted["scores"][i] > 0) | (found["scores"][i][order] > 0)
        for name, tensor in wanted.items():
            here, there = found[name][i], tensor[i]
            if legend[name].split()[0] == legend["scores"]:
                here, there = here[order][used], there[used]
            errors[name] = max(errors[name], _largest(here, there))
    return errors


def allowed(name: str, share: float) -> float:
    """A share of an output's unit, as an absolute error."""
    return share * UNITS.get(name, 1.0)


def in_units(errors: Mapping[str, float]) -> tuple[str, float]:
    """The output that is farthest off, and its error as a share of that output's unit."""
    shares = {name: error / UNITS.get(name, 1.0) for name, error in errors.items()}
    worst = max(shares, key=lambda name: shares[name])
    return worst, shares[worst]


def _partners(found: Batch, wanted: Batch) -> NDArray[np.intp]:
    """For each of N wanted rows the found row that means the same object; every row is taken once.

    The surest go first. Rows that are unused find each other in the end.
    """
    apart = np.abs(wanted["boxes"][:, None].astype(np.float64) - found["boxes"]).max(axis=-1)  # (N, N) pixels
    apart += np.abs(wanted["scores"][:, None].astype(np.float64) - found["scores"])
    other = (wanted["labels"][:, None] != found["labels"]) | ((wanted["scores"][:, None] > 0) != (found["scores"] > 0))
    apart = np.where(np.isfinite(apart), apart + ELSEWHERE * other, np.inf)
    order = np.full(len(apart), -1, np.intp)
    taken = np.zeros(len(apart), np.bool_)
    for index in np.argsort(apart, axis=None, kind="stable").tolist():
        row, column = divmod(index, len(apart))
        if order[row] < 0 and not taken[column]:
            order[row] = column
            taken[column] = True
            if taken.all():
                break
    return order


def _largest(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    error = float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))
    return error if np.isfinite(error) else np.inf
