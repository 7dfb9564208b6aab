"""The model to export: built by name, filled with weights, in evaluation mode."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import safetensors
import safetensors.torch
from torch import Tensor, nn

from export.errors import ExportError
from server.masks import AnyMasks
from server.preprocess import InputSpec


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
    """Fill a model from a safetensors file; every name and shape must fit.

    Raises:
        ExportError: says which names were missing, unexpected, or of another shape.
    """
    try:
        state = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ExportError(f"{path} does not exist; give the checkpoint with --weights") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise ExportError(f"{path} is not a safetensors file: {error}") from None
    module = cast(nn.Module, model)
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys())
    reshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    complaints = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if complaints:
        raise ExportError(f"{path} is not of this architecture: {'; '.join(complaints)}; check MODULE:BUILDER")
    module.load_state_dict(state)
