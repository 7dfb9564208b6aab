"""How every process but the supervisor begins: told everything on stdin, in one object of JSON, by the supervisor.

Nothing is inherited but what is listed: descriptors by number, settings by value. When the supervisor dies, its
children do.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import StartupError
from server.logs import logging_to_stderr, write_stderr
from server.metrics import Metrics
from server.processes.board import Board
from server.processes.ledger import Ledger
from server.processes.spec import Spec
from server.processes.totals import Processes, Totals
from server.repository import Repository, Served
from server.settings import Settings
from server.watchdog import leave

log = logging.getLogger("maskserve")

PR_SET_PDEATHSIG = 1  # prctl(2): a signal for me when my parent dies


@dataclass(frozen=True, slots=True)
class Child:
    """What every child works with."""

    spec: Spec
    settings: Settings
    board: Board
    repository: Repository
    metrics: Metrics
    control: socket.socket


def run(work: Callable[[Child], int]) -> None:
    """The whole life of a child process; does not return."""
    spec = Spec.loads(sys.stdin.buffer.read())
    die_with(spec.parent)
    # what a terminal sends reaches the supervisor alone; the supervisor's own signals are taken up by `work`
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = Settings.model_validate(spec.settings)
    board = Board(spec.board, len(spec.models), spec.fronts, spec.quotas)
    code = 1
    with logging_to_stderr(settings.log_style, settings.log_level, process=spec.name, write=board.writer(write_stderr)):
        try:
            ours = 0 if spec.listen is None else spec.number + 1
            totals = Totals([Ledger(descriptor) for descriptor in spec.ledgers], ours)
            totals.install()
            metrics = Metrics(Processes(lambda: people(spec.names, board)), totals.fresh)
            models = [
                Served(name, int(folder), settings.bundles / name / folder, digest=digest, graph_file=graph_file)
                for (name, folder, digest), graph_file in zip(spec.models, spec.graph_files, strict=True)
            ]
            control = socket.socket(fileno=spec.control)
            repository = Repository(models, settings.default_model)
            code = work(Child(spec, settings, board, repository, metrics, control))
        except StartupError as error:
            log.critical("cannot start: %s", error)
            code = 2
        except Exception:
            log.critical("this process ended by a bug", exc_info=True)
    leave(code)


def people(names: list[str], board: Board) -> dict[str, int]:
    """Names and ids of the processes that run."""
    return {name: int(pid) for name, pid in zip(names, board.processes["pid"], strict=True) if pid}


def die_with(parent: int) -> None:
    """End when `parent` does, whatever ends it. Elsewhere than on Linux, the end of the control socket says so."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)
