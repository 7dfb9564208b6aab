"""A server that is up, pictures that it answers, and run after run against it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np

from loadtest.answers import Alone, Check, Content, Exam
from loadtest.errors import CannotRun
from loadtest.load import Plan, Run
from loadtest.pictures import Picture
from loadtest.pool import Pool, Reply
from loadtest.progress import Progress
from loadtest.statistics import Summary, summarise
from loadtest.target import Dialler, Target

CONNECT_S = 5.0
SETTLE_S = 3.0  # a server is given so long to work off what a failed step has left


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run and what it means."""

    run: Run
    summary: Summary
    contents: list[Content]  # a sample of the right answers, taken apart

    @property
    def interrupted(self) -> bool:
        return self.run.recording.cut_at_s is not None and not self.run.gave_up


class Session:
    """`await prepare()` first, then `measure` as often as wanted.

    Args:
        target: the server.
        pictures: sent in turn.
        connections: at most so many at once.
        timeout_s: patience with a single request.
        check: how closely answers are looked at.
        seed: makes the choice of samples repeatable.
        progress: hears how it goes.
    """

    def __init__(
        self,
        target: Target,
        pictures: list[Picture],
        *,
        connections: int,
        timeout_s: float,
        check: Check,
        seed: int,
        progress: Progress,
    ) -> None:
        self.target, self.pictures = target, pictures
        self.alone = Alone()
        self.connections, self.timeout_s = connections, timeout_s
        self._exam = Exam(check, np.random.default_rng(seed))
        self._requests = [target.post(picture.payload) for picture in pictures]
        self._progress = progress
        self._dialler = Dialler(target, CONNECT_S)
        self._run: Run | None = None
        self.stopped = False

    async def prepare(self, wait_s: float = 0.0) -> None:
        """Waits for the server, then sends every picture alone: that makes known what a right answer is.

        Args:
            wait_s: how long /readyz may take to say yes; 0 does not ask.

        Raises:
            CannotRun: nobody is there, or a picture gets no answer.
        """
        pool = Pool(self._dialler, 1)
        try:
            if wait_s:
                await self._wait_until_ready(pool, wait_s)
            for number, (picture, request) in enumerate(zip(self.pictures, self._requests, strict=True)):
                reply = await self._ask(pool, request)
                self._learn(number, picture, reply)
            # The first answers of a server are slow ones; what a picture takes alone is the best of a few.
            for _ in range(max(0, 5 - len(self.pictures))):
                self.alone.seconds.append((await self._ask(pool, self._requests[0])).seconds)
        finally:
            await pool.close()

    async def measure(self, plan: Plan, label: str) -> Outcome:
        """One run."""
        pool = Pool(self._dialler, self.connections)
        self._run = Run(pool, self._requests, self._exam, plan)
        try:
            async with self._progress.watching(self._run, label):
                await self._run.go()
        finally:
            await pool.close()
        wrong, right = self._exam.review()
        for row, verdict in wrong.items():
            self._run.recording.correct(row, verdict.kind, verdict.why)
        contents = [content for row, content in right.items() if self._run.recording.due[row] >= plan.warmup_s]
        return Outcome(self._run, summarise(self._run, pool.most, pool.resent), contents)

    async def settle(self) -> None:
        """Waits until a lone request is about as fast as at the beginning: the queue of the run before is gone."""
        until = time.monotonic() + SETTLE_S
        pool = Pool(self._dialler, 1)
        try:
            while (left_s := until - time.monotonic()) > 0 and not self.stopped:
                try:
                    reply = await pool.ask(self._requests[0], left_s)
                except OSError:
                    pass
                else:
                    if reply.status == 200 and reply.seconds < 2 * self.alone_s:
                        return
                await asyncio.sleep(0.2)
        finally:
            await pool.close()

    def stop(self) -> None:
        """Ends the run that is going on, and lets none begin."""
        self.stopped = True
        if self._run is not None:
            self._run.stop()

    @property
    def alone_s(self) -> float:
        """What a picture takes when nothing else happens."""
        return float(np.median(self.alone.seconds))

    async def _ask(self, pool: Pool, request: bytes) -> Reply:
        try:
            return await pool.ask(request, max(self.timeout_s, 30.0))
        except OSError as error:
            raise CannotRun(
                f"no answer from {self.target.origin} ({error}). Is a server running there? "
                f"Start one with `make serve`, or `python -m server --port {self.target.port}`"
            ) from None

    def _learn(self, number: int, picture: Picture, reply: Reply) -> None:
        if reply.status != 200:
            verdict = self._exam.judge(0, number, reply.status, reply.body)
            advice = {
                "unauthorized": "; put a key into the environment: MASKSERVE_API_KEY",
                "not_ready": "; --wait-s 60 waits for it",
                "rate_limited": "; this key has a quota, take one without",
            }.get(verdict.kind, "")
            raise CannotRun(
                f"{self.target.origin}{self.target.path} refuses {picture.name}, sent alone: "
                f"{reply.status} {verdict.kind}: {verdict.why or 'no explanation'}{advice}"
            )
        content = self._exam.learn(number, reply.body)
        self.alone.seconds.append(reply.seconds)
        self.alone.instances.append(content.count if content else None)
        self.alone.model = content.model if content else ""

    async def _wait_until_ready(self, pool: Pool, wait_s: float) -> None:
        until = time.monotonic() + wait_s
        said = "nobody answers"
        while time.monotonic() < until and not self.stopped:
            try:
                reply = await pool.ask(self.target.get("/readyz"), 5.0)
            except OSError as error:
                said = str(error)
            else:
                if reply.status == 200:
                    return
                said = f"/readyz says {reply.status}"
            await asyncio.sleep(0.2)
        raise CannotRun(f"{self.target.origin} was not ready after {wait_s:g} s: {said}")
