"""The process that was started: it binds the port, starts the others, and starts them again.

The others are whole servers, each with engines of its own, or fronts and one engine process. A whole server counts as a
front wherever its engines do not matter; when one of them hangs it ends by itself.

    a front dies           its clients see a broken connection; another takes its place and its metrics
    the engine dies        what it had gets 503, /readyz says no, another is started and connected to every front
    the engine hangs       no run may last longer than --engine-timeout-s: what it had gets 504, then as above
    a front hangs          its event loop may not stand still for longer than that either
    either dies again and again   with longer and longer pauses; when it never gets ready, the server gives up with 1
    SIGTERM, SIGINT        fronts finish what they have, then the engine process, then this one: 0
    a second signal        fronts finish without waiting for their clients
    this one is killed     all the others are, by the system

It does little and holds no model, so that there is nothing in it that could fail.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from server.bundle_files import MANIFEST_FILE, sha256_of
from server.errors import StartupError
from server.http.keys import read_keys
from server.logs import logging_to_stderr, write_stderr
from server.processes.board import Board, make_board
from server.processes.handing import make_inboxes
from server.processes.ledger import Ledger, make_ledger
from server.processes.lives import Process, how_ended
from server.processes.outside import listening, waking
from server.processes.spec import Spec, process_names
from server.processes.wire import INTRODUCTION
from server.repository import Repository, find_models
from server.settings import Settings
from server.shared_file import shared_file

log = logging.getLogger("maskserve")

LOOK_S = 0.25  # between two looks at the board
FRONT_START_S = 5.0  # within which a front's death counts as one before it worked
HURRY_S = 3.0  # that everybody has after a second signal
END_S = 10.0  # that children have to end, beyond what their requests may take

BETWEEN = "the engine process ended; another one is being started"


def supervise(settings: Settings, fronts: int, shared: bool, load: str = "server.loading:load") -> int:
    """Serve until a signal comes.

    Args:
        fronts: how many front processes.
        shared: whether they share an engine process; else each is a whole server.
        load: `module:function` that opens a bundle.

    Returns:
        The exit code: 0, or 1 when it gave up or had to kill what did not end.

    Raises:
        StartupError: it cannot start.
    """
    repository = Repository(find_models(settings.bundles), settings.default_model)
    models = [(model.name, model.folder.name, sha256_of(model.folder / MANIFEST_FILE)) for model in repository.models]
    quotas = 0 if settings.keys is None else len(read_keys(settings.keys))
    file = make_board(len(models), fronts, quotas)
    board = Board(file, len(models), fronts, quotas)
    with logging_to_stderr(
        settings.log_style, settings.log_level, process="supervisor", write=board.writer(write_stderr)
    ):
        log.info("found %s in %s", ", ".join("/".join(model.key) for model in repository.models), settings.bundles)
        try:
            with listening(settings.host, settings.port) as port, waking() as (wait, signals):
                return Supervisor(settings, fronts, shared, load, models, quotas, board, port).run(wait, signals)
        except StartupError:
            raise
        except Exception:
            log.critical("the supervisor ended by a bug; its children end with it", exc_info=True)
            return 1


class Supervisor:
    def __init__(
        self,
        settings: Settings,
        fronts: int,
        shared: bool,
        load: str,
        models: list[tuple[str, str, str]],
        quotas: int,
        board: Board,
        port: socket.socket,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._settings = settings
        self._load = load
        self._models = models
        self._quotas = quotas
        self._board = board
        self._port = port
        self._clock = clock
        self._engine = Process("engine", 1)
        self._shared = shared
        self._names = process_names(fronts, shared)
        self._fronts = [Process(name, row) for row, name in enumerate(self._names) if row >= 2]
        self._all = [self._engine, *self._fronts] if shared else self._fronts
        self._inboxes = make_inboxes(fronts)
        self._ledgers = [make_ledger(process.name) for process in (self._engine, *self._fronts)]
        self._graph_files = [shared_file(f"graph-{name}-{version}", 0) for name, version, _ in models]
        self._generation = 0
        board.processes["pid"][0] = os.getpid()

    def run(self, wait: Callable[[float], None], signals: list[int]) -> int:
        """
        Args:
            wait: for a signal, at most so many seconds.
            signals: SIGTERM and SIGINT as they come.
        """
        while not signals:
            for process in self._all:
                if process.popen is None and self._clock() >= process.next_at:
                    self._start(process)
            wait(LOOK_S)
            self._look_for_hangs()
            for process in self._dead():
                self._mourn(process)
                if process.hopeless:
                    log.critical("%s ended %d times before it could work; giving up", process.name, process.early)
                    signals.append(0)
        code = 0 if signals[0] else 1
        if code == 0:
            log.info("%s: no new requests; finishing those inside", signal.Signals(signals[0]).name)
        self._port.close()
        ended = [self._end(group, wait, signals) for group in (self._fronts, [self._engine])]
        return code if all(ended) else 1

    def _start(self, process: Process) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        is_engine = process is self._engine
        if is_engine:
            self._generation += 1
            self._board.engine["generation"] = self._generation
        listen = None if is_engine else self._port.fileno()
        inbox = None if is_engine else self._inboxes[process.row - 2][0].fileno()
        doors = [] if is_engine else [door.fileno() for _, door in self._inboxes]
        spec = Spec(
            name=process.name,
            names=self._names,
            number=process.row - 2,
            parent=os.getpid(),
            settings=self._settings.model_dump(mode="json"),
            load=self._load,
            models=self._models,
            graph_files=self._graph_files,
            fronts=len(self._fronts),
            quotas=self._quotas,
            generation=self._generation,
            control=theirs.fileno(),
            listen=listen,
            inbox=inbox,
            doors=doors,
            board=self._board.descriptor,
            ledgers=self._ledgers,
        )
        passed = [theirs.fileno(), self._board.descriptor, *self._ledgers, *self._graph_files, *doors]
        passed += [descriptor for descriptor in (listen, inbox) if descriptor is not None]
        process.popen = subprocess.Popen(
            [sys.executable, "-m", f"server.processes.{self._kind(process)}"],
            stdin=subprocess.PIPE,
            pass_fds=passed,
            process_group=0,  # Ctrl-C in a terminal is for the supervisor
        )
        theirs.close()
        assert process.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.popen.stdin as told:
            told.write(spec.dumps())
        process.control, process.since = ours, self._clock()
        self._board.processes["pid"][process.row] = process.popen.pid
        for front in self._fronts if is_engine else [process]:
            self._introduce(front)

    def _kind(self, process: Process) -> str:
        """The module it runs."""
        if process is self._engine:
            return "engine"
        return "front" if self._shared else "whole"

    def _introduce(self, front: Process) -> None:
        """Give a front and the engine process, where both run, the ends of a connection and its two shared files."""
        pair = [(process, process.control) for process in (front, self._engine) if process.control is not None]
        if len(pair) < 2:
            return
        size = int(self._settings.shared_mb * 1e6)
        ends = socket.socketpair()
        files = [shared_file(f"{front.name}-{kind}", size) for kind in ("tensors", "outputs")]
        words = INTRODUCTION.pack(front.row - 2, self._generation)
        for (process, control), end in zip(pair, ends, strict=True):
            try:
                socket.send_fds(control, [words], [end.fileno(), *files])
            except OSError as error:  # dead, which will be noticed; or it has not listened for many lives of the other
                log.error("%s cannot be told of its new connection: %s", process.name, error)
                process.send(signal.SIGKILL)
        for end in ends:
            end.close()
        for descriptor in files:
            os.close(descriptor)

    def _dead(self) -> list[Process]:
        return [process for process in self._all if process.popen is not None and process.popen.poll() is not None]

    def _mourn(self, process: Process) -> None:
        """Tidy up after a child that has ended by itself, and say when the next one begins."""
        assert process.popen is not None
        now = self._clock()
        if process is self._engine:
            worked = int(self._board.engine["settled"][0]) == self._generation
        else:
            worked = now - process.since > FRONT_START_S
        pause = process.died(now, worked)
        log.error("%s %s; the next one starts in %g s", process.name, how_ended(process.popen.returncode), pause)
        self._bury(process)

    def _bury(self, process: Process) -> None:
        process.bury()
        self._board.processes["pid"][process.row] = 0
        for name in ("heartbeat", "inside", "connections", "prepared"):
            self._board.processes[name][process.row] = 0
        if process is self._engine:
            self._board.forget_engine(BETWEEN)
        if process is self._engine or not self._shared:
            Ledger(self._ledgers[process.row - 1]).clear_gauges()

    def _look_for_hangs(self) -> None:
        """Kill the engine process when a run lasts too long, and whoever's event loop has not turned for as long."""
        limit_s, now = self._settings.engine_timeout_s, self._clock()
        since = self._board.models["running_since"]
        hung = [number for number in range(len(self._models)) if since[number] and now - since[number] > limit_s]
        beats = self._board.processes["heartbeat"]
        silent = [process for process in self._all if beats[process.row] and now - beats[process.row] > limit_s]
        if hung or self._engine in silent:
            for number in hung or range(len(self._models)):
                self._board.models["hung"][number] = self._generation
            what = ", ".join("/".join(self._models[number][:2]) for number in hung) or "its event loop"
            self._put_down(self._engine, f"{what} has not come back", "; its requests get 504")
        for process in silent:
            if process is not self._engine:
                self._put_down(process, "its event loop has not come back", "")

    def _put_down(self, process: Process, why: str, then: str) -> None:
        limit = f"for {self._settings.engine_timeout_s:g} s (MASKSERVE_ENGINE_TIMEOUT_S)"
        log.critical("%s hangs: %s %s%s, and it is started again", process.name, why, limit, then)
        if process is self._engine:  # so that nobody is told "ready" between its death and our hearing of it
            self._board.forget_engine(BETWEEN)
        process.send(signal.SIGKILL)
        if process.popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(END_S)

    def _end(self, group: list[Process], wait: Callable[[float], None], signals: list[int]) -> bool:
        """SIGTERM, patience, SIGKILL; a signal to the supervisor meanwhile is passed on. Whether all ended with 0."""
        for process in group:
            process.send(signal.SIGTERM)
        until, heard = self._clock() + self._settings.drain_s + END_S, len(signals)
        good = True
        while any(process.popen for process in group):
            wait(LOOK_S)
            if len(signals) > heard:
                heard, until = len(signals), min(until, self._clock() + HURRY_S)
                for process in group:
                    process.send(signal.SIGTERM)
            if self._clock() > until:
                for process in group:
                    process.send(signal.SIGKILL)
            for process in self._dead():
                if process in group and process.popen is not None:
                    clean = process.popen.returncode in (0, -signal.SIGTERM)  # the latter: it had not begun to work
                    if not clean:
                        log.error("%s %s", process.name, how_ended(process.popen.returncode))
                    good &= clean
                    self._bury(process)
        return good
