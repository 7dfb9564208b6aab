"""The Prometheus metrics; names and labels are part of the contract.

One registry per application, so that two of them in one process (as in tests) do not mix.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a start time per series doubles the page and nobody reads it

LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
MODEL = ("model", "version")


class Metrics:
    """Every metric as an attribute named without its `seg_` prefix and unit."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
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
        self.queue_limit = Gauge("seg_queue_limit", "Images that may wait for the engine", MODEL, registry=kind)
        self.rejected = Counter(
            "seg_rejected", "Requests refused by the server's state", (*MODEL, "reason"), registry=kind
        )
        self.cancelled = Counter("seg_cancelled", "Clients that hung up, by stage", (*MODEL, "stage"), registry=kind)
        self.wasted_images = Counter("seg_wasted_images", "Images run for clients that had gone", MODEL, registry=kind)
        self.engine_busy = Counter("seg_engine_busy_seconds", "Seconds the engine was running", MODEL, registry=kind)
        self.model_info = Gauge(
            "seg_model_info", "1 for every loaded model", (*MODEL, "kind", "engine", "precision"), registry=kind
        )
        self.model_ready = Gauge("seg_model_ready", "1 when the model answers, else 0", MODEL, registry=kind)
        self.response_bytes = Histogram(
            "seg_response_bytes", "Bytes per answer", MODEL,
            buckets=(1e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 6.4e7), registry=kind,
        )  # fmt: skip
        self.image_pixels = Histogram(
            "seg_image_pixels", "Pixels per image as it came", MODEL,
            buckets=(1e4, 1e5, 3e5, 1e6, 2e6, 4e6, 8e6, 1.2e7, 2.5e7, 5e7), registry=kind,
        )  # fmt: skip

    def exposition(self) -> bytes:
        """The text that `/metrics` answers."""
        return generate_latest(self.registry)
