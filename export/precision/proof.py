"""The proof of a graph in fp16 or int8: against PyTorch in fp32, as one distance, and rows against their images alone.

Largest errors are recorded and not judged: in a network of 8 bits single numbers go either way, and which of two nearly
equal rows comes first does too. What must hold is that the answers as a whole stay near, and, exactly as in fp32, that
what else lies in a batch changes nothing.
"""

from __future__ import annotations

import torch

from export.errors import ExportError
from export.parity import FULL_UP_TO, GOLDEN_SEEDS, compare, golden_sample, inputs_for, rows_alone, run_model
from export.source import Exportable
from server.agreement import apart, golden_tolerance
from server.distance import distance
from server.engines import Engine, Tensors
from server.manifest import Parity, ParityRun

FARTHEST = {"fp16": 0.05, "int8": 0.5}  # distance from fp32 on drawn pictures; accuracy is judged by --check


def held(model: Exportable, engine: Engine, batches: list[int], precision: str) -> Parity:
    """Hold an engine against the PyTorch model in fp32, in the measure of its precision.

    Raises:
        ExportError: it lies too far off, or a row differs from its image alone by anything at all.
    """
    if precision == "fp32":
        return compare(model, engine, batches)
    legend = model.masks.legend
    farthest = FARTHEST[precision]
    runs = []
    for batch in batches:
        inputs = inputs_for(model.input, batch, seed=batch, full=batch <= FULL_UP_TO)
        reference, outputs = run_model(model, inputs), engine.run(inputs)
        found = distance([outputs], [reference], legend)
        if not found <= farthest:
            raise ExportError(
                f"batch {batch}: the answers in {precision} lie {found:.2g} from PyTorch's in fp32, more than "
                f"{farthest:g}; give pictures like those that will be served with --calibrate, or export it in fp32"
            )
        result = apart(outputs, reference, legend)
        height, width = inputs["images"].shape[1:3]
        runs.append(
            ParityRun(
                batch=batch,
                input_size=(height, width),
                largest_error=result.errors,
                distance=found,
                rows=result.rows,
                rows_without_partner=result.alone,
                alone_error=rows_alone(engine, inputs, outputs),
            )
        )
    return Parity(reference=f"pytorch {torch.__version__}, fp32", engine=engine.name, tolerance=farthest, runs=runs)


def golden_for(model: Exportable, engines: list[Engine], precision: str) -> tuple[Tensors, Tensors]:
    """One small picture and what PyTorch makes of it in fp32, of those that all engines answer well within what a
    server is held to.

    Raises:
        ExportError: there is none among `GOLDEN_SEEDS`.
    """
    if precision == "fp32":
        return golden_sample(model, *engines)
    nearest = float("inf")
    for seed in GOLDEN_SEEDS:
        inputs = inputs_for(model.input, 1, seed)
        reference = run_model(model, inputs)
        far = max(distance([engine.run(inputs)], [reference], model.masks.legend) for engine in engines)
        if far <= min(golden_tolerance(precision).values()) / 2:
            return inputs, reference
        nearest = min(nearest, far)
    raise ExportError(
        f"none of {len(GOLDEN_SEEDS)} drawn pictures is answered in {precision} as in fp32: the nearest lies "
        f"{nearest:.2g} off; give more of the pictures that will be served, or export it in fp32"
    )
