"""The Prometheus metrics; names and labels are part of the contract.

One registry per application, so that two of them in one process (as in tests) do not mix. With several processes the
numbers live in shared memory and are totals (`server/processes/totals.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

M = TypeVar("M", bound=MetricWrapperBase)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a start time per series doubles the page and nobody reads it

LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
MODEL = ("model", "version")
REJECTIONS = frozenset(("overloaded", "not_ready", "draining", "deadline_exceeded", "rate_limited"))  # by the state


class Began(Protocol):
    """A metric that somebody counts in, and the labels they count under."""

    @property
    def metric(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...


class Children(dict[tuple[str, ...], M], Generic[M]):
    """The series of one metric by the values of their labels, found once: `labels` takes a lock and makes texts anew.

    images = Children(metrics.images)
    images["nuclei", "1"].inc()
    """

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> M:
        child = self[labels] = self._metric.labels(*labels)
        return child


class Metrics:
    """Every metric as an attribute named without its `seg_` prefix and unit.

    Args:
        processes: tells of memory, time and files; of this process when left out.
        begun: series that any process has begun to count in since it was last asked.
    """

    def __init__(self, processes: Collector | None = None, begun: Callable[[], Iterable[Began]] = tuple) -> None:
        self.registry = CollectorRegistry()
        if processes is None:
            ProcessCollector(registry=self.registry)
        else:
            self.registry.register(processes)
        self._begun = begun
        kind = self.registry

        self.requests = Counter("seg_requests", "Segmentation requests answered", (*MODEL, "status"), registry=kind)
        self.failures = Counter("seg_failures", "Requests that failed, by code", (*MODEL, "code"), registry=kind)
        self.images = Counter("seg_images", "Images segmented; its rate is the FPS", MODEL, registry=kind)
        self.request_seconds = Histogram(
            "seg_request_seconds", "From the first byte of a request to the last of its answer", MODEL,
            buckets=LATENCY_S, registry=kind,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "seg_stage_seconds", "Where a request's time goes; the stages add up to the request", (*MODEL, "stage"),
            buckets=LATENCY_S, registry=kind,
        )  # fmt: skip
        self.batch_size = Histogram(
            "seg_batch_size", "Images per engine run", MODEL, buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32), registry=kind
        )
        self.instances = Histogram(
            "seg_instances", "Instances per image", MODEL, buckets=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
            registry=kind,
        )  # fmt: skip
        self.queue_depth = Gauge("seg_queue_depth", "Images waiting for the engine", MODEL, registry=kind)
        self.queue_limit = Gauge(
            "seg_queue_limit", "Images that may wait for the engine", MODEL, registry=kind, multiprocess_mode="livemax"
        )
        self.rejected = Counter(
            "seg_rejected", "Requests refused by the server's state", (*MODEL, "reason"), registry=kind
        )
        self.cancelled = Counter(
            "seg_cancelled",
            "Clients that hung up, by stage; a run that has not ended counts as queue",
            (*MODEL, "stage"),
            registry=kind,
        )
        self.wasted_images = Counter("seg_wasted_images", "Images run for clients that had gone", MODEL, registry=kind)
        self.engine_busy = Counter("seg_engine_busy_seconds", "Seconds the engine was running", MODEL, registry=kind)
        self.event_loop_lag = Histogram(
            "seg_event_loop_lag_seconds", "How late the event loop was, asked twice a second",
            buckets=LATENCY_S, registry=kind,
        )  # fmt: skip
        self.model_info = Gauge(
            "seg_model_info", "1 for every loaded model", (*MODEL, "kind", "engine", "precision"), registry=kind,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.model_ready = Gauge(
            "seg_model_ready", "1 when the model answers, else 0", MODEL, registry=kind, multiprocess_mode="livemax"
        )
        self.response_bytes = Histogram(
            "seg_response_bytes", "Bytes per answer", MODEL,
            buckets=(1e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 6.4e7), registry=kind,
        )  # fmt: skip
        self.image_pixels = Histogram(
            "seg_image_pixels", "Pixels per image as it came", MODEL,
            buckets=(1e4, 1e5, 3e5, 1e6, 2e6, 4e6, 8e6, 1.2e7, 2.5e7, 5e7), registry=kind,
        )  # fmt: skip

    def begin_at_zero(self, key: tuple[str, str]) -> None:
        """Make the series that alerts are about: one that appears with its first event has no rate for it."""
        for status in ("200", "500", "503"):
            self.requests.labels(*key, status)
        for reason in REJECTIONS:
            self.rejected.labels(*key, reason)

    def exposition(self) -> bytes:
        """The text that `/metrics` answers."""
        families = {vars(family).get("_name"): family for family in vars(self).values()}
        for series in self._begun():
            family = families.get(series.metric)
            if isinstance(family, Counter | Gauge | Histogram):
                labels = series.labels[: len(family._labelnames)]  # those of a bucket end with its bound
                if labels:
                    family.labels(*labels)  # from here on it is shown
        return generate_latest(self.registry)
