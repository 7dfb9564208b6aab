"""The model to export: built by name, filled with weights, in evaluation mode."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from torch import Tensor, nn

from export.errors import ExportError
from models.checkpoints.fit import Rules
from models.weights import Checkpoint, CheckpointError, load_into, read_checkpoint, read_classes, rename
from server.masks import AnyMasks
from server.preprocess import InputSpec

OURS = "maskserve"
SCORES = "box_predictor.scores.bias"  # one for each class, and one for the background


class Exportable(Protocol):
    """What a builder returns: an `nn.Module` with these promises."""

    classes: tuple[str, ...]
    masks: AnyMasks
    input: InputSpec
    score_threshold: float

    def __call__(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """uint8 (B, h, w, 3) and int32 (B, 2) to one tensor (B, ...) per entry of the legend."""


def build(name: str, **options: object) -> Exportable:
    """
    Args:
        name: `module:builder`, as in `models.unet:nuclei_unet`.
        options: keyword arguments for the builder; what is not given is as the builder means it.

    Raises:
        ExportError: no such module or builder, it builds something else, or it has no use for an option.
    """
    builder = _builder(name)
    unknown = [option for option in options if option not in inspect.signature(builder).parameters]
    if unknown:
        flags = " and ".join(f"--{option.replace('_', '-')}" for option in unknown)
        raise ExportError(f"{name} has no use for {flags}; leave it out, or choose a builder that takes it")
    try:
        model = builder(**options)
    except TypeError as error:
        raise ExportError(f"{name} is not a builder, which needs no arguments: {error}") from None
    except ValueError as error:
        raise ExportError(f"{name} cannot be built: {error}") from None
    missing = [promise for promise in ("classes", "masks", "input", "score_threshold") if not hasattr(model, promise)]
    if not isinstance(model, nn.Module) or missing:
        raise ExportError(f"{name} builds a {type(model).__name__} without {', '.join(missing) or 'nn.Module'}")
    return cast(Exportable, model.eval())


def takes(name: str, option: str) -> bool:
    """Whether the builder has a keyword argument of that name.

    Raises:
        ExportError: no such module or builder.
    """
    return option in inspect.signature(_builder(name)).parameters


def _builder(name: str) -> Callable[..., object]:
    module_name, _, builder_name = name.partition(":")
    if not builder_name:
        raise ExportError(f"'{name}' should be MODULE:BUILDER, as in models.unet:nuclei_unet")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ExportError(f"cannot import '{module_name}': {error}; run from the repository's root") from None
    builder = getattr(module, builder_name, None)
    if not callable(builder):
        known = ", ".join(getattr(module, "__all__", ())) or "nothing in __all__"
        raise ExportError(f"{module_name} has no builder '{builder_name}'; it offers {known}")
    return cast(Callable[..., object], builder)


def load_weights(model: Exportable, path: Path) -> None:
    """Fill a model from a checkpoint of any kind; every name and shape must fit. No code in the file is run.

    Raises:
        ExportError: not a checkpoint, one of another code base than the builder's, or one of another architecture or
            number of classes; says which names were missing, unexpected, or of another shape.
    """
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        raise ExportError(f"{error} (--weights)") from None
    meant = getattr(model, "dialect", None)
    if meant is not None and checkpoint.dialect not in (meant, OURS):
        raise ExportError(
            f"{path} should have {meant}'s names, found {checkpoint.dialect or 'unknown'} ones "
            f"({next(iter(checkpoint.tensors))!r}); the same layers work otherwise there: choose a builder of its own"
        )
    names, ignored = _rules(checkpoint.dialect)
    try:
        load_into(cast(nn.Module, model), checkpoint.tensors, names, ignored)
    except CheckpointError as error:
        sentence, *lists = str(error).split("\n")
        advice = _advice(model, checkpoint, names)
        raise ExportError("\n".join([f"{path} is not of this architecture: {sentence}; {advice}", *lists])) from None


def classes_of(path: Path) -> tuple[str, ...] | None:
    """Names of the classes, where the checkpoint tells them.

    Raises:
        ExportError: not a checkpoint.
    """
    try:
        return read_classes(path)
    except CheckpointError as error:
        raise ExportError(f"{error} (--weights)") from None


def _rules(dialect: str | None) -> tuple[Rules, Rules]:
    """How a code base's names become ours, and which nobody needs; none for our own and for those we do not know."""
    if dialect is None or find_spec(f"models.dialects.{dialect}") is None:
        return (), ()
    module = importlib.import_module(f"models.dialects.{dialect}")
    return module.NAMES, module.IGNORED


def _advice(model: Exportable, checkpoint: Checkpoint, names: Rules) -> str:
    """What to do, which is clear when only the number of classes is another."""
    ours = {name: theirs for theirs, name in rename(list(checkpoint.tensors), names).items()}
    found = checkpoint.tensors.get(ours.get(SCORES, ""))
    wanted = cast(nn.Module, model).state_dict().get(SCORES)
    if found is None or wanted is None or found.shape == wanted.shape or found.ndim != 1:
        return "check MODULE:BUILDER"
    return (
        f"the checkpoint tells {len(found) - 1} classes apart and the model {len(wanted) - 1}, so give --classes with "
        f"{len(found) - 1} names"
    )
