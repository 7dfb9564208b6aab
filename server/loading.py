"""From a bundle's folder to an engine that has reproduced its golden sample, and how long it takes for an image."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from server.agreement import off
from server.bundle_files import GOLDEN_FILE, PLAN_FILE
from server.engines import Engine, Tensors
from server.engines.choice import Candidate, Here, Wanted, candidates, here
from server.errors import DeviceFault, DeviceFull, GoldenMismatch, NoEngine, ShapeRefused, StartupError
from server.manifest import Bundle, read_bundle
from server.masks import bind
from server.scheduling.predictions import GUESS_RUN_S

log = logging.getLogger("maskserve")

MOST_TURNS, MEASURE_S = 5, 0.1  # of a measurement, the latter counted from its second turn on, which it always takes
SLOW_S = 0.02  # of a run


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine that has reproduced its bundle's golden sample."""

    bundle: Bundle
    engine: Engine
    pace_s: float  # seconds per input pixel of a run, and ...
    run_s: float = GUESS_RUN_S  # ... seconds of every run besides, both of the warm-up
    max_batch: int | None = None  # images that the engine takes, where that is fewer than the bundle says
    tried: int | None = None  # images in the largest run whose memory is taken already; None: in any
    precision: str | None = None  # that the engine computes in, where that is not the bundle's
    note: str = ""  # why it is not a better engine; for people, and without paths


def load(folder: Path, wanted: Wanted, machine: Callable[[], Here] = here) -> Loaded:
    """Verify a bundle, open it with the engine that is wanted, and hold that against its golden sample.

    Blocks for seconds. Of several candidates the first that reproduces the sample serves, and says what became of those
    before it: refused, or failed in a way that no runtime documents.

    Raises:
        StartupError: anything is wrong with it.
        DeviceFault: the GPU failed; no other candidate is tried in this process.
    """
    bundle = read_bundle(folder, leave_out={PLAN_FILE})  # who opens the plan verifies it
    order, note = candidates(bundle, wanted, machine())
    passed_over = [note] if note else []
    for candidate in order[:-1]:
        try:
            return _open_and_prove(bundle, candidate, passed_over)
        except DeviceFault:
            raise
        except Exception as error:
            bug = None if isinstance(error, StartupError) else error
            which = folder.parent.name, folder.name, candidate.name
            log.warning("model %s/%s is not served by %s: %s", *which, error, exc_info=bug)
            told = str(error) if isinstance(error, NoEngine) else f"{type(error).__name__}, see the log"
            passed_over.append(f"not {candidate.name}: {told}")
    return _open_and_prove(bundle, order[-1], passed_over)


def _open_and_prove(bundle: Bundle, candidate: Candidate, passed_over: list[str]) -> Loaded:
    """
    Raises:
        StartupError: it cannot be opened, or answers something else than the golden sample.
        DeviceFault: the GPU failed.
    """
    opened = candidate.open()
    engine = opened.engine
    try:
        sample = prove_golden(bundle, engine, opened.precision)
        pace_s, run_s = measure(engine, sample, opened.max_batch, opened.tried)
    except DeviceFull as error:
        engine.close()
        raise NoEngine(f"{error}: it opened, and has no room left to run") from error
    except ShapeRefused as error:
        engine.close()
        raise NoEngine(f"it does not take the golden sample: {error}") from error
    except BaseException:
        engine.close()
        raise
    note = "; ".join(passed_over)
    return Loaded(bundle, engine, pace_s, run_s, opened.max_batch, opened.tried, opened.precision, note)


def measure(
    engine: Engine, sample: Tensors, max_batch: int, tried: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Run one image and two in turns, and believe the quickest of each: other processes load at the same time, and a
    GPU's first run of a shape tells nothing of the next. Of what two together save half is believed, for so few runs:
    a batch that is not worth it makes its pictures wait and takes memory, and one that is shows it when there are many.

    Two are left out where memory for them is not taken yet (on a CPU) and one takes `SLOW_S`: what runs cost there
    besides their images is nothing to that.

    Returns:
        Seconds per input pixel, and seconds per run besides.
    """

    def seconds(inputs: Tensors) -> float:
        began = clock()
        engine.run(inputs)
        return clock() - began

    pixels = sample["images"].shape[1] * sample["images"].shape[2]
    one = seconds(sample)
    if max_batch < 2 or (tried < 2 and one > SLOW_S):
        return min(one, seconds(sample)) / pixels, GUESS_RUN_S
    pair = {name: np.repeat(tensor, 2, axis=0) for name, tensor in sample.items()}
    two, warm = seconds(pair), clock()
    for _ in range(MOST_TURNS - 1):
        one, two = min(one, seconds(sample)), min(two, seconds(pair))
        if clock() - warm > MEASURE_S:
            break
    each = min(max(two - one, one / 10), one)  # a tenth: a measurement this short is never better than that
    each = (each + one) / 2
    return each / pixels, max(one - each, GUESS_RUN_S)


def prove_golden(bundle: Bundle, engine: Engine, precision: str | None = None) -> Tensors:
    """Run the golden sample in both ways an engine has, and compare.

    Args:
        precision: that the engine computes in; the bundle's unless given.

    Returns:
        The sample's inputs, one image.

    Raises:
        GoldenMismatch: the engine answers something else than the bundle was exported with.
    """
    manifest = bundle.manifest
    kind = f"{engine.name}/{precision or manifest.precision}"
    tolerance = manifest.golden.tolerance.get(kind)
    if tolerance is None:
        raise NoEngine(
            f"the bundle does not say how closely '{kind}' must reproduce its golden sample, only "
            f"{', '.join(sorted(manifest.golden.tolerance))}; export it again"
        )
    with np.load(bundle.folder / GOLDEN_FILE, allow_pickle=False) as sample:
        golden = {name: sample[name] for name in sample.files}
    inputs = {name: golden.pop(name) for name in ("images", "sizes")}
    for outputs in (engine.run(inputs), engine.run_alone(inputs)):
        bind({name: tensor[0] for name, tensor in outputs.items()}, manifest.masks.legend)
        value, words = off(outputs, golden, manifest.masks.legend, precision or manifest.precision)
        if not value <= tolerance:
            raise GoldenMismatch(
                f"{bundle.folder}: the answer differs from the golden sample: {words}; the tolerance on {kind} is "
                f"{tolerance:g}; run the export again on this machine"
            )
    return inputs
