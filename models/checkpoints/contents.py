"""Which branch of a checkpoint's tree holds the weights, and what else it tells.

torchvision, yolact          {"backbone...": tensor, ...}
mmdetection                  {"state_dict": {...}, "meta": {"CLASSES": ...} or {"dataset_meta": {"classes": ...}}, ...}
detectron2, maskrcnn-benchmark, Detectron.pytorch    {"model": {...}, "optimizer": ..., "iteration": ...}
a whole pickled module       its parameters and buffers, module by module
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.checkpoints.arrays import Array
from models.checkpoints.errors import CheckpointError
from models.checkpoints.values import Foreign, TensorView, brief

BRANCHES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "blobs",
)
DEPTH = 4  # branches below branches
MODULES = 64  # modules inside modules
ENTRIES = 100_000  # weights and the like, in all
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, and of torch.compile


@dataclass(frozen=True, slots=True)
class Opened:
    """A container, read.

    Args:
        tree: what the file holds, numbers not yet loaded.
        container: what kind of file it is, for people.
        foreign: names of functions and classes that the file asked for and did not get.
        metadata: what a safetensors file says of itself.
    """

    tree: Any
    container: str
    foreign: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def weights_of(tree: Any) -> tuple[dict[str, TensorView], tuple[str, ...]]:
    """
    Returns:
        The weights by name, without the prefix that a wrapper put before each; and the names of entries among them that
        hold no tensor.

    Raises:
        CheckpointError: no weights in it, or one that is no plain tensor.
    """
    found = _branch(tree, DEPTH)
    weights = {name: value for name, value in found.items() if isinstance(name, str) and _is_tensor(value)}
    if not weights:
        raise CheckpointError(
            f"it should hold a dictionary of tensors, by itself or under one of {', '.join(BRANCHES[:4])}; found "
            f"{_inventory(tree)}; save the model's state_dict()"
        )
    broken = [f"{name!r} is {brief(value)}" for name, value in found.items() if isinstance(value, Foreign)]
    if broken and not isinstance(tree, Foreign):
        named = "; ".join(broken[:3])
        raise CheckpointError(
            f"{len(broken)} of its {len(found)} weights are no plain tensors ({named}): quantised, sparse and wrapped "
            "ones are not read; save the state dict of the plain model"
        )
    views: dict[str, TensorView] = {}
    for name, value in weights.items():
        try:
            views[name] = value.view() if isinstance(value, Array) else value
        except CheckpointError as error:
            raise CheckpointError(f"weight {brief(name)}: {error}") from None
    return _without_prefix(views), tuple(str(name) for name in found if name not in weights and name != "_metadata")


def classes_of(opened: Opened) -> tuple[str, ...] | None:
    """Names in label order, where the checkpoint tells them: mmdetection does, 2.x and 3.x each in its own place."""
    meta = _entries(_entries(opened.tree).get("meta"))
    dataset = _entries(meta.get("dataset_meta"))
    for told in (dataset.get("classes"), dataset.get("CLASSES"), meta.get("CLASSES"), meta.get("classes")):
        if isinstance(told, str) and told:
            return (told,)
        if isinstance(told, list | tuple) and told and all(isinstance(name, str) for name in told):
            return tuple(told)
    return None


def remarks(tree: Any) -> dict[str, str]:
    """Short texts and numbers beside the weights: who wrote the file, at which step."""
    entries = _entries(tree)
    beside = {**_entries(entries.get("meta")), **entries}
    return {
        str(name): str(value)
        for name, value in beside.items()
        if isinstance(name, str) and isinstance(value, str | int | float) and len(str(value)) <= 80
    }


def _branch(tree: Any, depth: int) -> Mapping[Any, Any]:
    """The entries of the first branch that holds tensors; nothing when none does."""
    if isinstance(tree, Foreign) and "_modules" in _entries(tree.state):
        return dict(_of_module(tree, "", MODULES, [ENTRIES]))
    entries = _entries(tree)
    if depth:
        for name in BRANCHES:
            found = _branch(entries.get(name), depth - 1)
            if any(_is_tensor(value) for value in found.values()):
                return found
    return entries


def _of_module(module: Foreign, prefix: str, depth: int, left: list[int]) -> Iterator[tuple[str, Any]]:
    """Parameters and saved buffers of a pickled `nn.Module` and of those inside it.

    Args:
        left: one number, how many entries may still come: a module can hold another one many times.
    """
    state = _entries(module.state)
    passing = state.get("_non_persistent_buffers_set")
    hidden = [name for name in passing if isinstance(name, str)] if isinstance(passing, list) else []
    for kind in ("_parameters", "_buffers", "_modules"):
        for name, value in _entries(state.get(kind)).items():
            left[0] -= 1
            if not depth or left[0] < 0 or len(prefix) > 1_000:
                raise CheckpointError("its module is nested or shared beyond reason; save the model's state_dict()")
            if kind == "_modules" and isinstance(value, Foreign):
                yield from _of_module(value, f"{prefix}{name}.", depth - 1, left)
            elif kind != "_modules" and value is not None and name not in hidden:
                yield f"{prefix}{name}", value


def _without_prefix(views: dict[str, TensorView]) -> dict[str, TensorView]:
    for _ in range(DEPTH):
        shared = [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in views)]
        if not shared:
            break
        views = {name.removeprefix(shared[0]): view for name, view in views.items()}
    return views


def _entries(value: Any) -> Mapping[Any, Any]:
    """Of a dictionary, or of an object that was one; empty for everything else."""
    if isinstance(value, Foreign):
        return value.items or {}
    return value if isinstance(value, dict) else {}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, TensorView | Array)


def _inventory(tree: Any) -> str:
    entries = _entries(tree)
    if not entries:
        return brief(tree)
    named = ", ".join(f"{brief(name)}: {brief(value)}" for name, value in list(entries.items())[:6])
    return f"{len(entries)} entries ({named}{', ...' if len(entries) > 6 else ''})"
