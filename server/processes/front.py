"""`python -m server.processes.front`: HTTP, decoding and masks over an engine elsewhere. Started by the supervisor."""

from __future__ import annotations

import logging

from server.cores import codec_threads
from server.errors import StartupError
from server.http.app import assemble
from server.http.gate import Gate
from server.http.serving import run_server
from server.manifest import read_manifest
from server.processes.accepting import turns_of
from server.processes.batcher import RemoteBatcher
from server.processes.board import BoardCondition, Inside, SharedBucket
from server.processes.child import Child, run
from server.processes.client import Link
from server.repository import check_digest
from server.workers import Workers

log = logging.getLogger("maskserve")


def work(child: Child) -> int:
    spec, settings, board = child.spec, child.settings, child.board
    link = Link(board, child.control)
    workers = Workers(settings.threads or codec_threads(spec.fronts))
    for number, model in enumerate(child.repository.models):
        model.condition = BoardCondition(board, number, lambda: link.connected)
        try:
            check_digest(model)
            model.manifest = read_manifest(model.folder)
        except (StartupError, OSError) as error:  # the engine process finds the same, and says why it is not served
            log.error("model %s/%s: %s", *model.key, error)
        model.batcher = RemoteBatcher(link, board, workers, number, settings.max_wait_ms / 1000)
    app = assemble(
        settings,
        child.repository,
        child.metrics,
        Gate(settings.queue_limit, Inside(board, spec.number)),
        link,
        workers,
        bucket=lambda number: SharedBucket(board, number),
    )
    return run_server(app, settings, turns_of(child, workers.width))


if __name__ == "__main__":
    run(work)
