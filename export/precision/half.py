"""fp16 in PyTorch: parts of a network take, compute and keep half-precision numbers; all between them stays fp32.

    x (float) -> half -> the part, its weights in half -> float -> what follows

The graph's inputs and outputs stay as they are, and its file shrinks to about half. An *island* is a part that is put
back to fp32 because of what was measured on pictures:

    range     something in it comes near the largest half-precision number (65504)
    error     with it in half, the answers lie too far from those of the fp32 network
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from export.errors import ExportError
from export.parity import run_model
from export.precision.parts import children_of, floats_mapped, floats_of, parts_of, tensors_in
from export.source import Exportable
from server.distance import distance
from server.engines import Tensors

LARGEST = 65504.0  # of half precision
HEADROOM = 4.0  # other pictures reach this much higher
BOUND = 0.01  # as `distance` measures: what all parts together may cost


@dataclass(frozen=True, slots=True)
class Half:
    """A network whose parts compute in fp16, and how it came to that."""

    model: Exportable
    parts: list[str]
    islands: dict[str, str]  # name -> what was measured
    distance: float  # of the whole, from fp32
    measured: dict[str, float] = field(default_factory=dict)  # distance with one part alone in half, where asked


def to_half(model: Exportable, parts: Sequence[str]) -> Exportable:
    """A copy of the model with these modules in half precision."""
    lowered = _copied(model)
    for name in parts:
        module = cast(nn.Module, lowered).get_submodule(name)
        module.half()
        module.register_forward_pre_hook(_narrow, with_kwargs=True)
        module.register_forward_hook(_widen)
    return lowered


def find_half(
    model: Exportable,
    pictures: Sequence[Tensors],
    bound: float = BOUND,
    tell: Callable[[str], None] = lambda text: None,
) -> Half:
    """Put into half what may be, and back what measurement says must not.

    Args:
        pictures: batches of one; a few, they are run often.
        bound: distance from fp32 that is accepted.
        tell: is given a word of progress now and then.

    Raises:
        ExportError: nothing in this network can be in half.
    """
    legend = model.masks.legend
    module = cast(nn.Module, model)
    example = tuple(torch.from_numpy(pictures[0][name][:1]) for name in ("images", "sizes"))
    wanted = [run_model(model, inputs) for inputs in pictures]
    parts = parts_of(module, *example)
    islands: dict[str, str] = {}
    parts = _without_large(module, parts, pictures, islands, example)
    alone: dict[str, float] = {}

    def far(names: Sequence[str]) -> float:
        lowered = to_half(model, names)
        return distance([run_model(lowered, inputs) for inputs in pictures], wanted, legend)

    found = far(parts) if parts else 0.0
    while parts and not found <= bound:
        tell(f"{found:.2g}")
        alone |= {name: far([name]) for name in parts if name not in alone}
        worst = max(parts, key=lambda name: alone[name])
        place = parts.index(worst)
        inner = children_of(module, worst, *example)
        if not inner:
            islands[worst] = f"error {alone[worst]:.2g} alone, {found:.2g} together; allowed {bound:g}"
        parts[place : place + 1] = inner
        found = far(parts) if parts else 0.0
    if not parts:
        raise ExportError(
            "no module of this network can compute in fp16 within "
            f"{bound:g} of fp32{': ' if islands else ''}{_listed(islands)}; export it with --precision fp32"
        )
    return Half(to_half(model, parts), parts, islands, found, alone)


def _without_large(
    model: nn.Module,
    parts: list[str],
    pictures: Sequence[Tensors],
    islands: dict[str, str],
    example: tuple[torch.Tensor, ...],
) -> list[str]:
    """Break up parts in which a number comes near the largest; the modules that make such numbers are islands."""
    reach = _reach(model, parts, pictures)
    kept: list[str] = []
    waiting = list(parts)
    while waiting:
        name = waiting.pop(0)
        inside = max(value for module, value in reach.items() if module == name or module.startswith(f"{name}."))
        if inside * HEADROOM <= LARGEST:
            kept.append(name)
            continue
        inner = children_of(model, name, *example)
        if not inner:
            islands[name] = f"range {inside:.3g}; half precision ends at {LARGEST:g}, less a headroom of {HEADROOM:g}"
        waiting[:0] = inner
    return kept


def _reach(model: nn.Module, parts: Sequence[str], pictures: Sequence[Tensors]) -> dict[str, float]:
    """Of every module in a part the largest magnitude among its inputs, outputs and own numbers."""
    names = [
        f"{part}.{inner}" if inner else part for part in parts for inner, _ in model.get_submodule(part).named_modules()
    ]
    reach = {
        name: max((float(t.detach().abs().max()) for t in floats_of(model.get_submodule(name))), default=0.0)
        for name in names
    }

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in tensors_in((args, output)):
                reach[name] = max(reach[name], float(tensor.abs().amax()) if tensor.numel() else 0.0)

        return hook

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(model.get_submodule(name).register_forward_hook(watch(name)).remove)
        for inputs in pictures:
            run_model(cast(Exportable, model), inputs)
    return reach


def _copied(model: Exportable) -> Exportable:
    """Modules and tensors anew. What else hangs on a module is shared: specs hold operators that cannot be copied."""
    modules = cast(nn.Module, model).modules()
    shared = [value for module in modules for name, value in vars(module).items() if not name.startswith("_")]
    return copy.deepcopy(model, {id(value): value for value in shared})


def _narrow(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return floats_mapped(args, torch.Tensor.half), floats_mapped(kwargs, torch.Tensor.half)


def _widen(module: nn.Module, args: Any, output: Any) -> Any:
    return floats_mapped(output, torch.Tensor.float)


def _listed(islands: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in islands.items())
