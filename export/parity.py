"""The proof that graph and model are equal: every output, several batch sizes, and each row against its image alone.

Batches of one and two have the size that an ordinary photograph comes to, larger ones the smallest that the graph takes
without becoming trivial: a detector at full size needs gigabytes for a batch of eight, and what could go wrong with the
batch shows on small pictures too.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import nn

from export.errors import ExportError
from export.graph import SMALLEST_SIDE
from export.sample import draw
from export.source import Exportable
from server.agreement import allowed, apart, in_units, largest_errors
from server.engines import Engine, Tensors
from server.manifest import Parity, ParityRun
from server.preprocess import AnyInput, FixedInput

TOLERANCE = 1e-3  # of an output's unit: probabilities, and pixels as `server.agreement` has them
WITHOUT_PARTNER = 0.02  # share of rows that a last bit may decide on
GOLDEN_SEEDS = range(7, 17)
PHOTOGRAPH = (480, 640)  # pixels
FULL_UP_TO = 2  # the largest batch that is proven at full size
TILE = 256  # pixels; drawn pictures are this large at most and then repeated


def inputs_for(spec: AnyInput, batch: int, seed: int, full: bool = False) -> Tensors:
    """A batch of drawn pictures; from the second on they are smaller than the input, each by another amount.

    Args:
        spec: what the model takes.
        full: the size that a photograph comes to, otherwise a small one.
    """
    height, width = input_size(spec, full)
    step = _slack(spec)
    sizes = np.array([(height - i % step, width - 2 * i % step) for i in range(batch)], np.int32)
    images = np.zeros((batch, height, width, 3), np.uint8)
    for i, (h, w) in enumerate(sizes.tolist()):
        tile = draw((min(h, TILE), min(w, TILE)), seed + i)
        images[i, :h, :w] = np.tile(tile, (-(-h // TILE), -(-w // TILE), 1))[:h, :w]
    return {"images": images, "sizes": sizes}


def input_size(spec: AnyInput, full: bool) -> tuple[int, int]:
    """(height, width) of the tensor."""
    if isinstance(spec, FixedInput):
        return spec.size
    if full:
        return spec.frame(PHOTOGRAPH).input_size
    times = spec.multiple * -(-SMALLEST_SIDE // (5 * spec.multiple))
    height, width = (min(count * times, side) for count, side in zip((5, 7), spec.max_size, strict=True))
    return height, width


def _slack(spec: AnyInput) -> int:
    """Pictures of one tensor differ in size by less than this, pixels."""
    if not isinstance(spec, FixedInput):
        return spec.multiple
    return max(1, min(spec.size) // 2) if spec.resize == "letterbox" else 1


def run_model(model: Exportable, inputs: Tensors) -> Tensors:
    """The reference: the PyTorch module in evaluation mode, on one image after the other, which spares memory."""
    rows = []
    with torch.inference_mode():
        for image, size in zip(inputs["images"], inputs["sizes"], strict=True):
            outputs = cast(nn.Module, model)(torch.from_numpy(image[None]), torch.from_numpy(size[None]))
            rows.append({name: tensor.numpy() for name, tensor in outputs.items()})
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def compare(model: Exportable, engine: Engine, batches: list[int]) -> Parity:
    """
    Raises:
        ExportError: an output differs by more than the tolerance, or a row from its image alone by anything at all.
    """
    runs = []
    for batch in batches:
        inputs = inputs_for(model.input, batch, seed=batch, full=batch <= FULL_UP_TO)
        reference, outputs = run_model(model, inputs), engine.run(inputs)
        for name, wanted in reference.items():
            if outputs[name].shape != wanted.shape:
                raise ExportError(f"the graph answers {outputs[name].shape} where PyTorch answers {wanted.shape}")
        result = apart(outputs, reference, model.masks.legend)
        errors = result.errors
        worst, share = in_units(errors)
        if not share <= TOLERANCE:
            raise ExportError(
                f"batch {batch}: output '{worst}' differs from PyTorch by {errors[worst]:.3g}, "
                f"more than {allowed(worst, TOLERANCE):g}"
            )
        if result.alone > max(1, WITHOUT_PARTNER * result.rows):
            raise ExportError(
                f"batch {batch}: {result.alone} of {result.rows} rows are answered by only one of graph and PyTorch; "
                "a last bit may decide on one in fifty"
            )
        height, width = inputs["images"].shape[1:3]
        runs.append(
            ParityRun(
                batch=batch,
                input_size=(height, width),
                largest_error=errors,
                rows=result.rows,
                rows_without_partner=result.alone,
                alone_error=rows_alone(engine, inputs, outputs),
            )
        )
    return Parity(reference=f"pytorch {torch.__version__}", engine=engine.name, tolerance=TOLERANCE, runs=runs)


def golden_sample(model: Exportable, *engines: Engine) -> tuple[Tensors, Tensors]:
    """One small picture and what PyTorch makes of it, of those that all engines answer row by row: a server holds every
    row against it, on machines where a last bit may fall the other way.

    Raises:
        ExportError: there is none among `GOLDEN_SEEDS`.
    """
    for seed in GOLDEN_SEEDS:
        inputs = inputs_for(model.input, 1, seed)
        reference = run_model(model, inputs)
        answers = (engine.run(inputs) for engine in engines)
        if all(in_units(largest_errors(told, reference, model.masks.legend))[1] <= TOLERANCE / 2 for told in answers):
            return inputs, reference
    raise ExportError(
        f"none of {len(GOLDEN_SEEDS)} drawn pictures has the same rows in graph and PyTorch; a row hangs on a last bit"
    )


def rows_alone(engine: Engine, inputs: Tensors, outputs: Tensors) -> float:
    """Run every image of a batch alone.

    Returns:
        The largest difference, which is 0.

    Raises:
        ExportError: it is not.
    """
    batch = len(inputs["images"])
    worst = 0.0
    for i in range(batch if batch > 1 else 0):
        alone = engine.run({name: tensor[i : i + 1] for name, tensor in inputs.items()})
        errors = {name: np.abs(outputs[name][i].astype(np.float64) - tensor[0]) for name, tensor in alone.items()}
        worst = max(worst, *(float(error.max(initial=0.0)) for error in errors.values()))
    if worst != 0.0:
        raise ExportError(f"batch {batch}: a row differs from its image alone by {worst:.3g}; it should be equal")
    return worst
