"""`python -m loadtest`: see options.py for what it can be asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np

from loadtest.errors import CannotRun
from loadtest.options import Options, read_options
from loadtest.pictures import Picture, find_pictures
from loadtest.plans import make_plan
from loadtest.progress import Progress
from loadtest.report import Finding, to_document, write_json, write_page
from loadtest.search import Found, Promise, Searcher
from loadtest.session import Session
from loadtest.target import parse_target
from loadtest.text import to_text
from loadtest.tune import START_S, Settings, Trial, Tuned, env_file, read_knobs, server, to_trial, tune

STEP_S = 6.0
INTERRUPTED = 130


def main(words: list[str] | None = None) -> int:
    """The exit code."""
    try:
        options = read_options(words)
        for path in (options.json_out, options.html_out, options.env_out):
            if path is not None and not path.resolve().parent.is_dir():
                raise CannotRun(f"cannot write {path}: there is no folder {path.parent}")
        finding = _run(test(options))
    except CannotRun as error:
        print(f"cannot run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    report = to_document(finding)
    print(to_text(report))
    if options.json_out:
        write_json(report, options.json_out)
    if options.html_out:
        write_page(report, options.html_out)
    if options.env_out and finding.tuned and finding.promise:
        options.env_out.write_text(env_file(finding.tuned, f"99 % within {finding.promise.p99_ms:g} ms"))
    if written := [str(path) for path in (options.json_out, options.html_out, options.env_out) if path]:
        print(f"wrote {', '.join(written)}")
    return INTERRUPTED if finding.interrupted else int(not finding.fine)


async def test(options: Options) -> Finding:
    """What the options ask for, from the first request to the last answer."""
    pictures, said = find_pictures(options.images)
    progress = Progress(None if options.quiet else sys.stderr)
    if options.mode == "tune":
        return await _tune(options, pictures, said, progress)
    session = _session(options, options.url, pictures, progress)
    with _stopped_by_signals(session.stop):
        progress.say(f"target {session.target.origin}{session.target.path}; {said}")
        await session.prepare(options.wait_s)
        if not session.stopped:
            progress.say(f"alone: {1000 * session.alone_s:.1f} ms a picture, {_instances(session)}")
        if options.mode == "find-max":
            found, searcher = await _search(options, session, progress, options.precision)
            outcome = searcher.best or searcher.last
            words = f"Poisson arrivals, {found.rate:.2f}/s" if searcher.best else "the last step of a search"
            return Finding(options, words, said, session.stopped, session, outcome, found)
        plan, words = make_plan(options, pictures)
        if session.stopped:
            return Finding(options, words, said, True, session)
        outcome = await session.measure(plan, "")
        return Finding(options, words, said, session.stopped, session, outcome)


async def _search(options: Options, session: Session, progress: Progress, precision: float) -> tuple[Found, Searcher]:
    assert options.p99_ms is not None
    searcher = Searcher(
        session=session,
        promise=Promise(options.p99_ms, options.error_percent),
        step_s=options.duration_s or STEP_S,
        warmup_s=min(options.warmup_s, 1.0),
        max_requests=options.max_requests,
        random=np.random.default_rng(options.seed),
        progress=progress,
    )
    return await searcher.find(precision), searcher


async def _tune(options: Options, pictures: list[Picture], said: str, progress: Progress) -> Finding:
    assert options.tune is not None
    command = options.tune
    current: list[Session] = []
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        for session in current:
            session.stop()

    async def measure(settings: Settings) -> Trial | None:
        if stopped:
            return None
        async with server(command, settings, options.server_log) as started:
            session = _session(options, f"http://127.0.0.1:{started.port}", pictures, progress)
            current[:] = [session]
            try:
                await started.while_it_lives(session.prepare(options.wait_s or START_S))
                found, _ = await started.while_it_lives(_search(options, session, progress, options.precision))
            except CannotRun as error:
                trial = Trial(settings, 0.0, None, str(error))
            else:
                trial = to_trial(settings, found)
        if session.stopped:
            return None
        progress.say(trial.line())
        return trial

    with _stopped_by_signals(stop):
        tuned: Tuned | None = await tune(measure, read_knobs(options.tries), options.precision)
    if tuned is None:
        raise CannotRun("stopped before the first setting was measured")
    if not any(trial.rate for trial in tuned.trials) and not stopped:
        progress.say("no setting carries anything: does the command work on its own? --server-log FILE shows its words")
    return Finding(options, "a search for the best settings", said, stopped, tuned=tuned)


def _session(options: Options, url: str, pictures: list[Picture], progress: Progress) -> Session:
    return Session(
        parse_target(url, options.headers, os.environ.get("MASKSERVE_API_KEY")),
        pictures,
        connections=options.connections,
        timeout_s=options.timeout_s,
        check=options.check,
        seed=options.seed,
        progress=progress,
    )


def _instances(session: Session) -> str:
    known = [count for count in session.alone.instances if count is not None]
    if not known:
        return "answers are not looked at"
    spread = f"{known[0]}" if min(known) == max(known) else f"{min(known)} to {max(known)}"
    return f"{spread} instances, every mask decodes"


def _run(story: Coroutine[Any, Any, Finding]) -> Finding:
    """On uvloop, which costs a request half as much as asyncio's own loop, where there is one."""
    if sys.platform == "win32":
        return asyncio.run(story)
    import uvloop

    return uvloop.run(story)


@contextlib.contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `stop`; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM) if sys.platform != "win32" else ()

    def on_signal() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop()

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


if __name__ == "__main__":
    sys.exit(main())
