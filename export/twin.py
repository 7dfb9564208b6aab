"""The twin, `--tensorrt`: a second graph of the same module, from operators that a stock TensorRT has.

Which operators an architecture would need plugins for, it knows itself: `plugin_free` gives the same module with other
blocks passed in. A module without that method is its own twin, provided that its graph keeps the law. The twin is held
against PyTorch as the graph is, and for every picture of that comparison cluster-NMS has to reach its fixed point: more
rounds are tried, up to `MOST_ROUNDS`, and the number that did is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast, runtime_checkable

from export.errors import ExportError
from export.parity import FULL_UP_TO, inputs_for, run_model
from export.source import Exportable
from models.blocks.cluster_nms import ROUNDS, ClusterNMS
from models.blocks.watch import Counting
from server.engines import Tensors

MOST_ROUNDS = 4 * ROUNDS


@runtime_checkable
class HasPlugins(Protocol):
    """A module whose graph needs operators that a stock TensorRT lacks."""

    def plugin_free(self, nms: ClusterNMS) -> object:
        """The same module, with the same weights, without them."""


def twin_of(model: Exportable, rounds: int | None) -> Exportable:
    """
    Args:
        rounds: of cluster-NMS; None for a module that has none.
    """
    if rounds is None or not isinstance(model, HasPlugins):
        return model
    return cast(Exportable, model.plugin_free(ClusterNMS(rounds)))


def rounds_for(model: Exportable, pictures: Iterable[Tensors]) -> int | None:
    """Rounds of cluster-NMS that reach the fixed point for all these pictures; None where nothing is suppressed.

    Raises:
        ExportError: `MOST_ROUNDS` do not.
    """
    if not isinstance(model, HasPlugins):
        return None
    rounds = ROUNDS
    for inputs in pictures:
        while (residue := residue_of(model, rounds, inputs)).changed and rounds < MOST_ROUNDS:
            rounds *= 2
        _check(residue, rounds)
    return rounds


def check_settled(model: Exportable, rounds: int | None, pictures: Iterable[Tensors]) -> None:
    """
    Raises:
        ExportError: so many rounds do not reach the fixed point for these pictures.
    """
    if rounds is None or not isinstance(model, HasPlugins):
        return
    for inputs in pictures:
        _check(residue_of(model, rounds, inputs), rounds)


def residue_of(model: HasPlugins, rounds: int, inputs: Tensors) -> Counting:
    """Run the twin in PyTorch, and hear how far it was from its native partner by design."""
    residue = Counting()
    run_model(cast(Exportable, model.plugin_free(ClusterNMS(rounds, watch=residue))), inputs)
    return residue


def pictures_of(model: Exportable, batches: list[int]) -> Iterable[Tensors]:
    """Those that graph and twin are compared with PyTorch by."""
    return (inputs_for(model.input, batch, seed=batch, full=batch <= FULL_UP_TO) for batch in batches)


def _check(residue: Counting, rounds: int) -> None:
    if residue.changed:
        raise ExportError(
            f"{rounds} rounds of cluster-NMS leave {residue.changed} boxes undecided (at most {MOST_ROUNDS} rounds are "
            "made): chains of overlapping boxes are longer than that; export without --tensorrt"
        )
    if residue.missed:
        raise ExportError(
            f"{residue.missed} candidates above the score threshold were left out before NMS in pictures with rows to "
            "spare; export without --tensorrt"
        )
