"""Weights into a module: every name and shape fits, or it is told exactly which do not and nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.checkpoints.errors import CheckpointError

INLINE = 3  # names of a complaint that go into the sentence
LISTED = 12  # names of a complaint that are listed; all are counted
Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What `load_into` did.

    Args:
        loaded: how many weights.
        ignored: names in the checkpoint that nobody needs, by the reason.
    """

    loaded: int
    ignored: Mapping[str, tuple[str, ...]]


def rename(names: Sequence[str], rules: Rules) -> dict[str, str]:
    """Each of `names` with what it becomes: by the first rule whose pattern matches it in full, or itself."""
    patterns = [(re.compile(pattern), template) for pattern, template in rules]
    found: dict[str, str] = {}
    for name in names:
        matches = ((pattern.fullmatch(name), template) for pattern, template in patterns)
        found[name] = next((match.expand(template) for match, template in matches if match), name)
    return found


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], names: Rules = (), ignored: Rules = ()) -> Fitted:
    """Copy weights into a module's own parameters and buffers, converted to their type.

    Args:
        tensors: by the checkpoint's names.
        names: (pattern, template) pairs that make them ours; the first that matches in full counts, and a name that
            none matches stays.
        ignored: (pattern, reason) pairs of names that may be there and are not needed.

    Raises:
        CheckpointError: names all those that are missing, unexpected, of another shape or of another kind of number.
            The module is as it was.
    """
    reasons = [(re.compile(pattern), reason) for pattern, reason in ignored]
    left_out: dict[str, tuple[str, ...]] = {}
    kept: list[str] = []
    for name in tensors:
        reason = next((reason for pattern, reason in reasons if pattern.fullmatch(name)), None)
        if reason is None:
            kept.append(name)
        else:
            left_out[reason] = (*left_out.get(reason, ()), name)
    wanted = module.state_dict(keep_vars=True)
    sources: dict[str, list[str]] = {}
    for theirs, ours in rename(kept, names).items():
        sources.setdefault(ours, []).append(theirs)

    unexpected = [_both(theirs[0], ours) for ours, theirs in sources.items() if ours not in wanted]
    twice = [f"{ours} from {' and '.join(theirs)}" for ours, theirs in sources.items() if len(theirs) > 1]
    missing = [name for name in wanted if name not in sources and not name.endswith(".num_batches_tracked")]
    fitting = {ours: tensors[theirs[0]] for ours, theirs in sources.items() if ours in wanted}
    reshaped = [
        f"{_both(sources[ours][0], ours)}: expected {tuple(wanted[ours].shape)}, found {tuple(tensor.shape)}"
        for ours, tensor in fitting.items()
        if tensor.shape != wanted[ours].shape
    ]
    retyped = [
        f"{_both(sources[ours][0], ours)}: expected {wanted[ours].dtype}, found {tensor.dtype}"
        for ours, tensor in fitting.items()
        if tensor.is_floating_point() != wanted[ours].is_floating_point()
    ]
    complaints = (
        (missing, "missing"),
        (unexpected, "unexpected"),
        (reshaped, "of another shape"),
        (retyped, "of another kind of number"),
        (twice, "there twice"),
    )
    if any(listed for listed, _ in complaints):
        raise CheckpointError(_told(complaints, len(wanted), len(tensors)))
    with torch.no_grad():
        for ours, tensor in fitting.items():
            wanted[ours].copy_(tensor)
    return Fitted(len(fitting), left_out)


def _both(theirs: str, ours: str) -> str:
    """A name in the checkpoint, and ours for it; what cannot be printed is written out."""
    both = theirs if theirs == ours else f"{theirs} ({ours})"
    return both if both.isprintable() else ascii(both)


def _told(complaints: Sequence[tuple[Sequence[str], str]], wanted: int, found: int) -> str:
    """Few names in the sentence, more of them in lists below it."""
    counts, lines = [], []
    for names, what in complaints:
        listed = sorted(names)
        if listed:
            counts.append(f"{len(listed)} {what}" + (f" ({', '.join(listed)})" if len(listed) <= INLINE else ""))
        if len(listed) > INLINE:
            lines += [f"  {what}:", *(f"    {line}" for line in listed[:LISTED])]
        if len(listed) > LISTED:
            lines.append(f"    ... and {len(listed) - LISTED} more")
    sentence = f"the network has {wanted} weights, the checkpoint {found}, and they do not fit: {'; '.join(counts)}"
    return "\n".join([sentence, *lines])
