"""What an adopted graph does, measured: rows against their images alone, shapes, numbers, and what rows mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.errors import ExportError
from export.sample import draw
from server.agreement import in_units, largest_errors
from server.cores import usable_cores
from server.engines import Engine, Tensors, load_engine
from server.errors import ShapeMismatch, StartupError
from server.manifest import Parity, ParityRun
from server.masks import bind
from server.preprocess import FixedInput

PICTURES = ((480, 640), (640, 480), (512, 512), (300, 900))  # sizes of originals, in turn
TILE = 256  # pixels; drawn pictures are this large at most and then repeated

ROUNDING = 1e-4  # of an output's unit

Answer = tuple[int, Tensors]  # of a batch: its size, and the outputs


def sample(spec: FixedInput, batch: int, seed: int, varied: bool) -> Tensors:
    """Drawn pictures in the network's input.

    Args:
        varied: place pictures of several shapes; otherwise each fills the input.
    """
    height, width = spec.size
    images = np.zeros((batch, height, width, 3), np.uint8)
    sizes = np.zeros((batch, 2), np.int32)
    for i in range(batch):
        h, w = spec.frame(PICTURES[i % len(PICTURES)]).content if varied else spec.size
        tile = draw((min(h, TILE), min(w, TILE)), seed + i)
        images[i, :h, :w] = np.tile(tile, (-(-h // TILE), -(-w // TILE), 1))[:h, :w]
        sizes[i] = h, w
    return {"images": images, "sizes": sizes}


def alike(file: Path, other: Path, inputs: Tensors, legend: dict[str, str]) -> bool:
    """Do two graphs answer the same but for rounding? No, where one of them answers nothing that fits the legend."""
    try:
        wanted, found = (_answer(path, inputs) for path in (file, other))
        bind({name: tensor[0] for name, tensor in wanted.items()}, legend)
    except (ExportError, StartupError, ShapeMismatch):
        return False
    return in_units(largest_errors(found, wanted, legend))[1] <= ROUNDING


def _answer(path: Path, inputs: Tensors) -> Tensors:
    engine = load_engine(path, usable_cores())
    try:
        return _run(engine, inputs)
    finally:
        engine.close()


def compare_rows(engine: Engine, spec: FixedInput, varied: bool, batches: list[int]) -> tuple[Parity, list[Answer]]:
    """Run batches, and each image of them alone.

    Raises:
        ExportError: the graph fails, a row differs from its image alone, a number is not finite, or a shape not fixed.
    """
    runs: list[ParityRun] = []
    answers: list[Answer] = []
    equal_up_to = 1
    for batch in batches:
        inputs = sample(spec, batch, seed=batch, varied=varied)
        outputs = _run(engine, inputs)
        _check_shapes(outputs, batch, answers)
        alone = [_run(engine, {name: tensor[i : i + 1] for name, tensor in inputs.items()}) for i in range(batch)]
        for name, tensor in outputs.items():
            if not all(np.isfinite(each[name]).all() for each in (outputs, *alone)):
                raise ExportError(
                    f"output '{name}' has NaN or infinity in it for a drawn picture at batch {batch}; "
                    "a row that is unused needs finite numbers too"
                )
            if alone[0][name].shape[1:] != tensor.shape[1:]:
                raise ExportError(f"output '{name}' is {tensor.shape} at batch {batch}, {alone[0][name].shape} alone")
        errors = {name: max(_largest(outputs[name][i], alone[i][name][0]) for i in range(batch)) for name in outputs}
        worst = max(errors, key=lambda name: errors[name])
        if errors[worst] != 0.0:
            differing = ", ".join(f"'{name}' by {error:.3g}" for name, error in errors.items() if error)
            raise ExportError(
                f"at batch {batch} a row differs from its image alone: {differing}; it should be equal. "
                f"Adopt it with --max-batch {equal_up_to}, or take what rows do to each other out of the graph"
            )
        equal_up_to = batch
        answers.append((batch, outputs))
        runs.append(ParityRun(batch=batch, input_size=spec.size, largest_error=errors, alone_error=0.0))
    reference = f"each image alone, onnxruntime {onnxruntime.__version__}"
    return Parity(reference=reference, engine=engine.name, tolerance=0.0, runs=runs), answers


def check_rows(answers: list[Answer], legend: dict[str, str], size: tuple[int, int]) -> None:
    """Hold what the graph answered against its legend, and rows against what rows mean.

    Raises:
        ExportError: other shapes, scores that rise, labels below 0, or boxes that are no input pixels.
    """
    for _, outputs in answers:
        try:
            bind({name: tensor[0] for name, tensor in outputs.items()}, legend)
        except ShapeMismatch as error:
            raise ExportError(f"{error}; the batch axis comes first, the others as the legend says") from None
        if "scores" not in legend:
            continue
        scores = outputs["scores"]
        if (np.diff(scores, axis=1) > 0).any():
            raise ExportError("scores should fall from row to row; sort the rows in the graph, best first (TopK)")
        used = scores > 0
        if "labels" in legend and (outputs["labels"][used] < 0).any():
            raise ExportError("labels should count from 0, a row in use has one below; subtract the background class")
        if "boxes" in legend and used.any() and min(size) >= 8 and np.abs(outputs["boxes"][used]).max() <= 2:
            raise ExportError(
                "boxes look like fractions of the picture, they should be input pixels; "
                f"multiply them by ({size[1]}, {size[0]}, {size[1]}, {size[0]}) in the graph"
            )


def largest_label(answers: list[Answer]) -> int:
    """Of the rows in use on all pictures; -1 when there were none."""
    return max(int(outputs["labels"][outputs["scores"] > 0].max(initial=-1)) for _, outputs in answers)


def _run(engine: Engine, inputs: Tensors) -> Tensors:
    batch = len(inputs["images"])
    try:
        return engine.run(inputs)
    except Exception as error:  # runtimes have no common base class for their errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(
            f"the graph fails at batch {batch}: {reason}; export it with a batch axis that is free all the way "
            "through, or adopt it with --max-batch 1"
        ) from None


def _check_shapes(outputs: Tensors, batch: int, before: list[Answer]) -> None:
    for name, tensor in outputs.items():
        if tensor.shape[:1] != (batch,):
            raise ExportError(f"output '{name}' is {tensor.shape} at batch {batch}; the batch axis should come first")
        for other, earlier in before:
            if earlier[name].shape[1:] != tensor.shape[1:]:
                raise ExportError(
                    f"output '{name}' is {earlier[name].shape} at batch {other} and {tensor.shape} at batch {batch}; "
                    "all axes but the batch should be fixed: pad rows with score 0"
                )


def _largest(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))
