"""How far two answers of a model lie apart: an engine against the golden sample, a graph against PyTorch.

Rows of candidates are a ranking. Two runtimes that differ by rounding may swap two rows whose scores are nearly equal,
and say different things in rows that are unused. So rows are first laid beside those that mean the same object, by
label and box, and rows that neither side uses do not count:

    wanted   cell 0.91 at (3, 4)    cell 0.52 at (9, 9)     unused
    found    cell 0.52 at (9, 9)    cell 0.91 at (3, 4)     unused          no difference

Errors are absolute. What is allowed is a share of each output's unit: a thousandth of a probability is much, a
thousandth of a pixel is not.

A network in fp16 or int8 is held against the fp32 one as a whole, by `server.distance`: single numbers of it may lie
anywhere within what its rounding does, and two correct runtimes lie as far from each other as from fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.distance import distance

# What an engine may differ from the golden sample by. fp32: a share of each output's unit; on a GPU with TF32 off. fp16
# and int8: a distance. Those of the CPU were measured; those of the GPU engines are what is expected, not yet measured.
GOLDEN_TOLERANCE = {
    "onnxruntime-cpu/fp32": 1e-3,
    "onnxruntime-cpu/fp16": 0.03,
    "onnxruntime-cpu/int8": 0.3,
    "onnxruntime-cuda/fp32": 5e-3,
    "onnxruntime-cuda/fp16": 0.03,
    "onnxruntime-cuda/int8": 0.3,
    "tensorrt/fp32": 5e-3,
    "tensorrt/fp16": 0.03,
    "tensorrt/int8": 0.3,
    "tensorrt-rtx/fp32": 5e-3,
    "tensorrt-rtx/fp16": 0.03,
    "tensorrt-rtx/int8": 0.3,
}

UNITS = {"boxes": 20.0, "vertices": 20.0, "mask_logits": 10.0}  # pixels, pixels, logits; 1 for all others
MEANING = ("boxes", "scores", "labels")  # what tells a row from the others
PARTNER = 1.0  # pixels: what lies farther is another object
ELSEWHERE = 1e6  # pixels: farther than any box, for candidates of another label

Batch = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Apart:
    """How far two answers lie apart."""

    errors: dict[str, float]  # of every output, absolute, over rows that have a partner
    rows: int  # that either side uses, all images together
    alone: int  # of these, without a partner on the other side


def largest_errors(found: Batch, wanted: Batch, legend: Mapping[str, str]) -> dict[str, float]:
    """Of every output the largest absolute difference, infinite where shapes differ or a number is not finite.

    A row that has no partner is compared with whatever is left.

    Args:
        found, wanted: outputs of one batch, each (B, ...), under the names of the legend.
        legend: of the mask representation; it tells which outputs have a row for every candidate.
    """
    return _compare(found, wanted, legend, farthest=np.inf).errors


def apart(found: Batch, wanted: Batch, legend: Mapping[str, str]) -> Apart:
    """As `largest_errors`, but rows without a partner are counted and not compared.

    Where two boxes overlap as much as is just allowed, or two scores compete for the last row, the last bit of a number
    decides which object is answered: then one row of two correct answers has no partner.
    """
    return _compare(found, wanted, legend, farthest=PARTNER)


def _compare(found: Batch, wanted: Batch, legend: Mapping[str, str], farthest: float) -> Apart:
    if set(found) != set(wanted) or any(found[name].shape != wanted[name].shape for name in wanted):
        return Apart(dict.fromkeys(wanted, np.inf), 0, 0)
    if not set(MEANING) <= set(wanted):
        return Apart({name: _largest(found[name], wanted[name]) for name in wanted}, 0, 0)
    errors = dict.fromkeys(wanted, 0.0)
    rows = alone = 0
    for i in range(len(wanted["scores"])):
        order, distances = _partners(*({name: side[name][i] for name in MEANING} for side in (found, wanted)))
        used = (wanted["scores"][i] > 0) | (found["scores"][i][order] > 0)
        near = used & ~(distances > farthest)
        rows, alone = rows + int(used.sum()), alone + int((used & ~near).sum())
        for name, tensor in wanted.items():
            here, there = found[name][i], tensor[i]
            if legend[name].split()[0] == legend["scores"]:
                here, there = here[order][near], there[near]
            errors[name] = max(errors[name], _largest(here, there))
    return Apart(errors, rows, alone)


def golden_tolerance(precision: str) -> dict[str, float]:
    """By '<engine>/<precision>', of every engine there is: what a manifest says."""
    return {kind: value for kind, value in GOLDEN_TOLERANCE.items() if kind.endswith(f"/{precision}")}


def off(found: Batch, wanted: Batch, legend: Mapping[str, str], precision: str) -> tuple[float, str]:
    """How far an answer is off, in the measure of its precision, and the same in words.

    Args:
        found, wanted: outputs of one batch, each (B, ...); only those of `wanted` are looked at.
        precision: fp32, fp16 or int8.

    Returns:
        What a tolerance of that precision is held against; infinite where shapes differ or a number is not finite.
    """
    shapes = {name: found[name].shape if name in found else None for name in wanted}
    if precision == "fp32" or any(shapes[name] != wanted[name].shape for name in wanted):
        errors = largest_errors({name: found[name] for name in wanted if name in found}, wanted, legend)
        name, share = in_units(errors)
        return share, f"output '{name}' by {errors[name]:.2g}, allowed is a share of its unit, {UNITS.get(name, 1.0):g}"
    value = distance([{name: found[name] for name in wanted}], [dict(wanted)], legend)
    return value, f"the answers lie {value:.2g} apart (server/distance.py)"


def allowed(name: str, share: float) -> float:
    """A share of an output's unit, as an absolute error."""
    return share * UNITS.get(name, 1.0)


def in_units(errors: Mapping[str, float]) -> tuple[str, float]:
    """The output that is farthest off, and its error as a share of that output's unit."""
    shares = {name: error / UNITS.get(name, 1.0) for name, error in errors.items()}
    worst = max(shares, key=lambda name: shares[name])
    return worst, shares[worst]


def _partners(found: Batch, wanted: Batch) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """For each of N wanted rows the found row that means the same object, and how far from it that is, in pixels; every
    row is taken once.

    The surest go first. Rows that are unused find each other in the end.
    """
    far = np.abs(wanted["boxes"][:, None].astype(np.float64) - found["boxes"]).max(axis=-1)  # (N, N) pixels
    far += np.abs(wanted["scores"][:, None].astype(np.float64) - found["scores"])
    other = (wanted["labels"][:, None] != found["labels"]) | ((wanted["scores"][:, None] > 0) != (found["scores"] > 0))
    far = np.where(np.isfinite(far), far + ELSEWHERE * other, np.inf)
    order = np.full(len(far), -1, np.intp)
    taken = np.zeros(len(far), np.bool_)
    for index in np.argsort(far, axis=None, kind="stable").tolist():
        row, column = divmod(index, len(far))
        if order[row] < 0 and not taken[column]:
            order[row] = column
            taken[column] = True
            if taken.all():
                break
    return order, far[np.arange(len(far)), order]


def _largest(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    error = float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))
    return error if np.isfinite(error) else np.inf
