"""The proof that graph and model are equal: every output, several batch sizes, and each row against its image alone."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.errors import ExportError
from export.sample import draw
from export.source import Exportable
from server.engines import Engine, Tensors
from server.manifest import Parity, ParityRun

TOLERANCE = 1e-3  # absolute: probabilities, and offsets in pixels


def inputs_for(model: Exportable, batch: int, seed: int) -> Tensors:
    """A batch of drawn pictures; from the second on they are smaller than the input, each by another amount."""
    multiple = model.input.multiple
    height, width = 5 * multiple, 7 * multiple
    sizes = np.array([(height - i % multiple, width - 2 * i % multiple) for i in range(batch)], np.int32)
    images = np.zeros((batch, height, width, 3), np.uint8)
    for i, (inner_height, inner_width) in enumerate(sizes):
        images[i, :inner_height, :inner_width] = draw((int(inner_height), int(inner_width)), seed + i)
    return {"images": images, "sizes": sizes}


def run_model(model: Exportable, inputs: Tensors) -> Tensors:
    """The reference: the PyTorch module in evaluation mode."""
    with torch.inference_mode():
        outputs = cast(nn.Module, model)(torch.from_numpy(inputs["images"]), torch.from_numpy(inputs["sizes"]))
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def compare(model: Exportable, engine: Engine, batches: list[int]) -> Parity:
    """
    Raises:
        ExportError: an output differs by more than the tolerance, or a row from its image alone by anything at all.
    """
    runs = []
    for batch in batches:
        inputs = inputs_for(model, batch, seed=batch)
        reference, outputs = run_model(model, inputs), engine.run(inputs)
        errors = {name: _largest(outputs[name], reference[name]) for name in reference}
        alone_error = 0.0
        for i in range(batch):
            alone = engine.run({name: tensor[i : i + 1] for name, tensor in inputs.items()})
            alone_error = max(alone_error, *(_largest(outputs[name][i], alone[name][0]) for name in alone))
        height, width = inputs["images"].shape[1:3]
        runs.append(ParityRun(batch=batch, input_size=(height, width), largest_error=errors, alone_error=alone_error))
        worst = max(errors, key=lambda name: errors[name])
        if not errors[worst] <= TOLERANCE:
            raise ExportError(
                f"batch {batch}: output '{worst}' differs from PyTorch by {errors[worst]:.3g}, more than {TOLERANCE}"
            )
        if alone_error != 0.0:
            raise ExportError(
                f"batch {batch}: a row differs from its image alone by {alone_error:.3g}; it should be equal"
            )
    return Parity(reference=f"pytorch {torch.__version__}", engine=engine.name, tolerance=TOLERANCE, runs=runs)


def _largest(found: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    if found.shape != wanted.shape:
        raise ExportError(f"the graph answers {found.shape} where PyTorch answers {wanted.shape}")
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))
