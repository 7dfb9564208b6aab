"""A child process over all its lives: how it is reached, how it ended, and when it may start again.

A child that dies soon after it began is given a longer pause each time, so that one that cannot live does not take the
cores from those that do: 0.1 s, 0.2, 0.4, ... up to 10. A death after a steady life is the first again.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from dataclasses import dataclass

PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0  # before the next try; doubled each time
STEADY_S = 10.0  # of life after which a death is the first again
TRIES = 5  # of a child that never gets as far as to work


@dataclass(slots=True)
class Process:
    """One child. Times are of the supervisor's clock, seconds."""

    name: str
    row: int  # of the board's processes
    popen: subprocess.Popen[bytes] | None = None
    control: socket.socket | None = None
    since: float = 0.0  # of this life
    deaths: int = 0  # in a row, without a steady life between
    early: int = 0  # deaths in a row before it had come to work
    next_at: float = 0.0  # the next life begins no sooner

    @property
    def hopeless(self) -> bool:
        return self.early >= TRIES

    def send(self, number: int) -> None:
        """A signal, where it lives."""
        if self.popen is not None:
            self.popen.send_signal(number)

    def died(self, now: float, worked: bool) -> float:
        """Count a death.

        Args:
            worked: whether it had come to work in this life.

        Returns:
            Seconds until the next life.
        """
        self.early = 0 if worked else self.early + 1
        self.deaths = 1 if now - self.since > STEADY_S else self.deaths + 1
        pause = min(PAUSE_S * 2.0 ** (self.deaths - 1), LONGEST_PAUSE_S)
        self.next_at = now + pause
        return pause

    def bury(self) -> None:
        """Let go of what was the dead one's."""
        if self.control is not None:
            self.control.close()
        self.popen = self.control = None


def how_ended(returncode: int) -> str:
    """`was ended by SIGKILL`, `ended with 1`."""
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended with {returncode}"
