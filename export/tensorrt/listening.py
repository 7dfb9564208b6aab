"""What TensorRT says while it builds: its messages, kept and not printed, and its phases as lines of progress."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from typing import Any

from export.tensorrt import reading

SAYING_EVERY_S = 5.0  # a phase that takes longer says how far it is
LONG_S = 1.0  # and one that took longer, what it took


def log_of(trt: Any) -> Any:
    """A logger of TensorRT's that keeps what matters and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []
            self._warnings: dict[str, None] = {}
            self._layers = ""
            self._memory: int | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self._errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self._warnings[message] = None
            elif message.startswith(reading.LIST_BEGINS):
                self._layers = message
            elif message.startswith("Total Activation Memory: "):
                self._memory = int(message.split()[3])

        def last(self) -> str:
            """The last error that is the graph's: without a GPU, TensorRT complains of that after every other."""
            graph = [message for message in self._errors if "catchCudaError" not in message]
            return str((graph or self._errors or [""])[-1])

        def warnings(self) -> list[str]:
            return list(self._warnings)

        def layers(self) -> str:
            return self._layers

        def device_memory(self) -> int | None:
            return self._memory

    return Log()


def monitor_of(trt: Any, say: Callable[[str], None]) -> Any:
    """TensorRT's phases as lines: what takes long says how far it is, and what took long, how long."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._began: dict[str, float] = {}
            self._steps: dict[str, int] = {}
            self._said = time.monotonic()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._began[phase], self._steps[phase] = time.monotonic(), steps

        def step_complete(self, phase: str, step: int) -> bool:
            now = time.monotonic()
            if now - self._said >= SAYING_EVERY_S:
                self._said = now
                say(f"{phase}: {step} of {self._steps.get(phase, step)}")
            return True

        def phase_finish(self, phase: str) -> None:
            seconds = time.monotonic() - self._began.pop(phase, time.monotonic())
            if seconds >= LONG_S:
                self._said = time.monotonic()
                say(f"{phase}: {seconds:.1f} s")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Monitor()


def in_short(message: str) -> str:
    """The first sentence that says something, without where in TensorRT's sources it was said."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Invalid Node"):
        lines = lines[1:]
    text = re.sub(r"^\[[\w.:]+\] ", "", (lines or [""])[0])  # [file.cpp::function::line]
    text = re.sub(r"^\w+::\w+: ", "", text)  # IBuilder::buildSerializedNetwork:
    text = re.sub(r"^Error Code \d+: ", "", text).split(" In ")[0]
    return text.replace("Assertion failed: ", "").strip(" (").rstrip(".")[:300]
