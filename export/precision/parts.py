"""Which modules of a network may compute in fp16: told by the operations that run inside them.

A module is a candidate when all that happens while it runs is convolution, products, sums, ReLU and its kin, batch norm
with statistics that stand still, maxima and moving things about. Those round once and keep their range. Whatever else
there is (softmax, exponentials, coordinates, sampling, layer norm, sorting) keeps a module in fp32; the modules inside
it are looked at in their turn. So the largest modules that may are found without a list for any architecture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

SAFE = {
    "convolution", "conv2d", "conv_transpose2d", "addmm", "mm", "bmm", "linear", "t", "transpose", "numpy_T",
    "native_batch_norm", "_native_batch_norm_legit_no_training", "batch_norm", "cudnn_batch_norm",
    "relu", "relu_", "leaky_relu", "leaky_relu_", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "silu", "silu_",
    "clamp_min", "threshold", "add", "add_", "cat", "stack", "max_pool2d", "max_pool2d_with_indices",
    "upsample_nearest2d", "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "permute",
    "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "expand", "unsqueeze", "squeeze", "detach",
    "clone", "alias", "contiguous", "constant_pad_nd", "empty", "zeros_like",
}  # fmt: skip


class _Seen:
    """What was seen of every module while the network ran."""

    def __init__(self) -> None:
        self.operations: dict[str, set[str]] = defaultdict(set)
        self.inside: dict[str, set[str]] = defaultdict(set)  # modules that ran inside another
        self.running: list[str] = []
        self.other_inputs: set[str] = set()  # modules that were given something else than floats


class _Listen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, seen: _Seen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__ if func.namespace == "aten" else str(func)
        for module in self.seen.running:
            self.seen.operations[module].add(name)
        return func(*args, **(kwargs or {}))


def parts_of(model: nn.Module, images: Tensor, sizes: Tensor) -> list[str]:
    """Names of the largest modules that may compute in fp16, in the order of the module tree.

    Args:
        images: (B, h, w, 3) uint8, any picture; `sizes` (B, 2) int32.
    """
    seen = _listen(model, images, sizes)
    chosen: list[str] = []

    def look(name: str) -> None:
        if name and _may(model.get_submodule(name), name, seen):
            chosen.append(name)
            return
        for child in _children(model, name):
            look(child)

    look("")
    return chosen


def children_of(model: nn.Module, name: str, images: Tensor, sizes: Tensor) -> list[str]:
    """The largest modules strictly inside one that may compute in fp16."""
    seen = _listen(model, images, sizes)
    found: list[str] = []

    def look(inner: str) -> None:
        for child in _children(model, inner):
            if _may(model.get_submodule(child), child, seen):
                found.append(child)
            else:
                look(child)

    look(name)
    return found


def floats_mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with every floating tensor in its lists, tuples and dicts changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: floats_mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(floats_mapped(inner, change) for inner in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors_in(inner)


def floats_of(module: nn.Module) -> Iterator[Tensor]:
    """Its own weights and statistics, those of modules inside it left out: what `half` rounds."""
    return (tensor for tensor in _own_tensors(module) if tensor.is_floating_point() and tensor.numel())


def _may(module: nn.Module, name: str, seen: _Seen) -> bool:
    """Safe throughout, with something to compute, and nothing of its own that a module around it may use otherwise."""
    if name not in seen.operations or name in seen.other_inputs or not seen.operations[name] <= SAFE:
        return False
    bare = next(module.children(), None) is not None and next(_own_tensors(module), None) is not None
    idle = {
        f"{name}.{inner}" for inner, m in module.named_modules() if inner and next(_own_tensors(m), None) is not None
    }
    products = any(tensor.dim() > 1 for tensor in module.parameters())  # a norm alone gains nothing and costs two casts
    return products and not bare and idle <= seen.inside[name]


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _children(model: nn.Module, name: str) -> list[str]:
    module = model.get_submodule(name) if name else model
    return [f"{name}.{child}" if name else child for child, _ in module.named_children()]


def _listen(model: nn.Module, images: Tensor, sizes: Tensor) -> _Seen:
    seen = _Seen()

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            for around in seen.running:
                seen.inside[around].add(name)
            seen.running.append(name)
            if not all(tensor.is_floating_point() for tensor in tensors_in((args, kwargs))):
                seen.other_inputs.add(name)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        seen.running.pop()

    with ExitStack() as hooks, torch.inference_mode():
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
        hooks.enter_context(_Listen(seen))
        model(images, sizes)
    return seen
