"""`python -m server.processes.whole`: a server with engines of its own, one of several on one port.

Each has its share of the cores, so that none waits for another's Python lock; while one request is inside all of them
together, its run may use all cores. Started by the supervisor.
"""

from __future__ import annotations

import importlib

from server.cores import share_of_cores, usable_cores
from server.giving_way import give_way
from server.hosting import Hosting, Load
from server.http.app import assemble
from server.http.gate import Gate
from server.http.serving import run_server
from server.processes.accepting import turns_of
from server.processes.board import Inside, SharedBucket
from server.processes.child import Child, run
from server.workers import Workers


def work(child: Child) -> int:
    spec, settings, board = child.spec, child.settings, child.board
    module, name = spec.load.split(":")
    load: Load = getattr(importlib.import_module(module), name)
    cores = settings.threads or usable_cores()
    inside = Inside(board, spec.number)

    def settled() -> None:
        """Before /readyz says yes: until then the others may take connections and say no."""
        give_way()
        board.fronts["prepared"][spec.number] = 1

    workers = Workers(share_of_cores(cores, spec.fronts))
    hosting = Hosting(
        settings,
        child.repository,
        child.metrics,
        load,
        workers=workers,
        threads=cores,
        crowded=lambda: inside.total() > 1,
        on_settled=settled,
    )
    app = assemble(
        settings,
        child.repository,
        child.metrics,
        Gate(settings.queue_limit, inside),
        hosting,
        workers,
        bucket=lambda number: SharedBucket(board, number),
    )

    def prepared() -> bool:
        return hosting.settled and not hosting.broken

    return run_server(app, settings, turns_of(child, workers.width, prepared))


if __name__ == "__main__":
    run(work)
