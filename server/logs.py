"""What the process writes to stderr: one line for each thing that happened, as JSON or for a person at a terminal.

    {"ts":"2026-01-31T12:03:04.123Z","level":"info","event":"request","request_id":"9f0c...","status":200,...}
    {"ts":"2026-01-31T12:03:05.001Z","level":"info","event":"log","logger":"maskserve","message":"SIGTERM: ..."}

    12:03:04.123 INFO  nuclei/1 200 108 ms  512x384 113 instances  [decode 1.9 queue 0.1 inference 98]  id=9f0c...

Everything goes through the standard library's root logger: our lines, uvicorn's, asyncio's, Python's warnings, and what
no thread caught. A line is formatted where it is logged and written by a thread of its own, so that a stalled stderr
stalls nothing else; the queue between the two is bounded, and what it could not take is counted and told later.
No line ever holds a control character: text from outside cannot forge a second line or speak to the terminal.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Literal

import orjson

log = logging.getLogger("maskserve")

MAX_LINES = 2000  # that wait for stderr: seconds of a busy server, a few megabytes
PATIENCE_S = 2.0  # how long the end of the process waits for stderr to take them
MAX_TRACEBACK = 8000  # characters; the end is kept, it names the error
SHORT = {"WARNING": "WARN", "CRITICAL": "CRIT"}


class Event:
    """A message with fields, `log.info(Event("request", {...}))`: JSON shows the fields, a terminal `str(event)`."""

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        return " ".join((self.name, *(f"{key}={value}" for key, value in self.fields.items())))


class JsonLines(logging.Formatter):
    """One JSON object, in ASCII.

    Args:
        process: which of several this is; every line says so.
    """

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        seconds, milliseconds = divmod(int(record.created * 1000), 1000)
        ts = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"
        line: dict[str, Any] = {"ts": ts, "level": record.levelname.lower()}
        if self._process is not None:
            line["process"] = self._process
        if isinstance(record.msg, Event):
            line |= {"event": record.msg.name} | record.msg.fields
        else:
            line |= {"event": "log", "logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[0]:
            line["error"] = {"type": record.exc_info[0].__name__, "traceback": _traceback(record.exc_info)}
        try:
            quick = orjson.dumps(line).decode()
            if quick.isascii():
                return quick
        except TypeError:  # half a surrogate pair, or a value that is none of JSON's
            pass
        return json.dumps(line, default=str, separators=(",", ":"))  # escapes U+0085 and U+2028, line ends to some


class TextLines(logging.Formatter):
    """One line for a person, local time; a traceback follows on lines that begin with a bar.

    Args:
        process: which of several this is; every line says so.
    """

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._process = f"{process:<10} " if process else ""

    def format(self, record: logging.LogRecord) -> str:
        seconds, milliseconds = divmod(int(record.created * 1000), 1000)
        clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{milliseconds:03d}"
        line = (
            f"{clock} {SHORT.get(record.levelname, record.levelname):<5} {self._process}{escape(record.getMessage())}"
        )
        if record.exc_info and record.exc_info[0]:
            line = "\n    | ".join((line, *map(escape, _traceback(record.exc_info).splitlines())))
        return line


def escape(text: str) -> str:
    """`text` with every character that does not print, line ends among them, as an escape: `a\\x1b[2J\\nb`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class Background(logging.Handler):
    """Formats at once and lets a thread write. Never blocks, and is safe inside a signal handler.

    Args:
        write: takes one line with its end; may block for as long as it likes.
        max_lines: how many may wait; more are dropped, and their number is told when the queue is empty again.
    """

    def __init__(
        self, write: Callable[[bytes], object], formatter: logging.Formatter, max_lines: int = MAX_LINES
    ) -> None:
        super().__init__()
        self._write = write
        self._max_lines = max_lines
        self._dropped = 0
        self._lines: SimpleQueue[str | None] = SimpleQueue()  # its `put` is reentrant, that of `Queue` is not
        self.setFormatter(formatter)
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() >= self._max_lines:
            self._dropped += 1
            return
        try:
            line = self.format(record)
        except Exception as error:  # what logging would print as a traceback of its own
            line = self._say(logging.ERROR, f"{record.name}: a line could not be formatted ({type(error).__name__})")
        self._lines.put(line)

    def close(self) -> None:
        """Write what waits, for at most `PATIENCE_S`."""
        self._lines.put(None)
        self._thread.join(PATIENCE_S)
        super().close()

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            self._put_out(line)
            if self._dropped and self._lines.empty():
                self._tell_dropped()
        if self._dropped:
            self._tell_dropped()

    def _tell_dropped(self) -> None:
        self.acquire()
        dropped, self._dropped = self._dropped, 0
        self.release()
        self._put_out(self._say(logging.WARNING, Event("dropped", {"lines": dropped})))

    def _put_out(self, line: str) -> None:
        try:
            self._write(f"{line}\n".encode(errors="backslashreplace"))
        except OSError:  # stderr is gone, and there is nowhere to say so
            self._dropped += 1

    def _say(self, level: int, message: str | Event) -> str:
        return self.format(logging.LogRecord(log.name, level, "", 0, message, (), None))


def write_stderr(data: bytes) -> None:
    """Past `sys.stderr`: its lock, held by a thread that waits, would end the interpreter in a crash."""
    while data:
        data = data[os.write(2, data) :]


@contextmanager
def logging_to_stderr(
    style: Literal["json", "text"],
    level: str,
    process: str | None = None,
    write: Callable[[bytes], object] = write_stderr,
) -> Iterator[None]:
    """Every line of the process in one form, until the block ends.

    Args:
        process: its name where there are several.
        write: takes one line; several processes need one that lets a line be whole.
    """
    handler = Background(write, JsonLines(process) if style == "json" else TextLines(process))
    root = logging.getLogger()
    before = root.level, threading.excepthook, sys.unraisablehook
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    threading.excepthook = sys.unraisablehook = _uncaught
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before[1:]
        logging.captureWarnings(False)
        root.setLevel(before[0])
        root.removeHandler(handler)
        handler.close()


def _uncaught(caught: Any) -> None:
    """For `threading.excepthook` and `sys.unraisablehook`."""
    log.error("nobody caught this", exc_info=(caught.exc_type, caught.exc_value, caught.exc_traceback))


def _traceback(exc_info: Any) -> str:
    text = "".join(traceback.format_exception(*exc_info)).strip()
    return text if len(text) <= MAX_TRACEBACK else "... " + text[-MAX_TRACEBACK:]
